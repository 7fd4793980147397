"""The error tree and its table."""

from __future__ import annotations

import inspect
from pathlib import Path

import grpc
import pytest

from service import error_page, errors
from service.client import ServiceError
from service.errors import FieldProblem, FramesGone, MirageError, TooManyRequests, problem_of

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)
         if issubclass(kind, MirageError) and kind is not MirageError]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_has_a_row_and_a_place_in_the_drawn_tree(kind: type[MirageError]) -> None:
    problem = errors.PROBLEMS[kind]
    assert 400 <= problem.status < 600
    assert 1000 <= problem.close_code <= 1015 or problem.close_code == 4000 + problem.status
    assert kind.__name__ in (errors.__doc__ or "")


def test_types_are_distinct() -> None:
    assert len(errors.BY_TYPE) == len(errors.PROBLEMS) + len(errors.OF_HTTP) + 1


def test_an_error_without_a_row_is_its_parents() -> None:
    class Special(TooManyRequests):
        pass

    assert problem_of(Special("no")).status == 429


def test_the_document_says_what_was_seen_and_what_is_allowed() -> None:
    error = errors.InvalidRequest("no", fields=(FieldProblem("poses", "[]", "at least one"),))
    document = errors.problem_document(error)
    assert document["type"] == "urn:mirage:problem:invalid-request"
    assert document["status"] == 422 and document["detail"] == "no poses: at least one; got []."
    assert document["errors"] == [{"field": "poses", "seen": "[]", "allowed": "at least one"}]


@pytest.mark.parametrize(
    ("seen", "told"),
    [("a", "; got a."), ("17", "; got 17."), ("lens", "."), ("170", "."), ("", ".")],
)
def test_a_value_that_is_part_of_another_word_is_told_all_the_same(seen: str, told: str) -> None:
    detail, field = "A lens of 170 can't be used.", FieldProblem("fov_deg", seen, "one of less")
    document = errors.problem_document(errors.InvalidRequest(detail, fields=(field,)))
    assert document["detail"] == f"{detail} fov_deg: one of less{told}"
    rest = document | {"errors": [*document["errors"], {"field": "f", "seen": "e", "allowed": "x"}]}
    assert str(ServiceError(rest)).endswith("f: got e, allowed: x")


def test_gone_frames_name_the_first_that_is_kept() -> None:
    document = errors.problem_document(FramesGone("gone", first_available=12))
    assert (document["status"], document["first_available"]) == (410, 12)


def test_a_full_queue_says_when_to_come_back() -> None:
    document = errors.problem_document(TooManyRequests("full", retry_after_s=2.0))
    assert (document["status"], document["retry_after_s"]) == (429, 2.0)


def test_what_is_forbidden_is_not_always_a_scope() -> None:
    hint = errors.PROBLEMS[errors.Forbidden].hint
    assert all(word in hint for word in ("scope", "page", "address", "world"))


def test_every_row_says_what_to_do_and_has_a_grpc_code() -> None:
    for problem in errors.BY_TYPE.values():
        assert problem.hint.endswith(".") and problem.title
        assert problem.grpc in grpc.StatusCode.__members__ and problem.grpc != "OK"


def test_the_page_of_errors_is_readable_on_a_phone_and_asks_for_no_icon() -> None:
    assert '<meta name="viewport" content="width=device-width' in error_page.page()
    assert '<link rel="icon" href="data:,">' in error_page.page()


def test_the_page_of_errors_is_the_table() -> None:
    docs = Path(__file__).parents[2] / "docs" / "errors.md"
    assert docs.read_text() == error_page.markdown(), (
        "python -m service.error_page > docs/errors.md"
    )
    for problem in errors.BY_TYPE.values():
        assert f"\n## {problem.type}\n" in docs.read_text()
        assert f'id="{problem.type}"' in error_page.page()


@pytest.mark.parametrize("text", ["é" * 100, "a" + "世" * 100, "a" * 200, "short"])
def test_a_close_reason_fits_into_its_frame(text: str) -> None:
    code, reason = errors.close_of(errors.UnknownSession(text))
    assert code == 4404 and text.startswith(reason)
    assert min(len(text.encode()), 118) <= len(reason.encode()) <= 123
