"""Messages refuse what they don't know and name what is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pytest
from pydantic import BaseModel, ValidationError

from service.control.branches import ForkIn, RewindIn, SnapshotIn
from service.errors import InvalidRequest
from service.limits import MAX_FIELDS
from service.poses import flat
from service.rest.findings import shown
from service.rest.problems import invalid_request
from service.rest.videos import VideoForm
from service.schemas import Closed, PathIn, PoseIn
from service.stream.messages import (
    CLIENT_MESSAGE,
    OpenMessage,
    PathMessage,
    PoseMessage,
    from_text,
)

IDENTITY = flat(np.eye(4))


def test_poses_of_both_forms_in_one_path() -> None:
    path = PathIn.model_validate(
        {
            "axes": "ros",
            "poses": [{"matrix": IDENTITY}, {"position": [1, 0, 0], "quaternion": [0, 0, 0, 1]}],
        }
    )
    poses = path.flat_poses(np.eye(4), 10)
    assert poses[0] == IDENTITY
    assert np.reshape(poses[1], (4, 4))[:3, 3].tolist() == [0, 0, 1]


def test_a_matrix_may_come_as_rows() -> None:
    rows = np.eye(4).tolist()
    path = PathIn.model_validate_json(json.dumps({"poses": [{"matrix": rows}]}))
    assert path.flat_poses(np.eye(4), 10) == [IDENTITY]


def test_actions_continue_from_where_they_are_told() -> None:
    start = np.eye(4)
    start[:3, 3] = 5, 6, 7
    path = PathIn.model_validate({"actions": [{"forward_m": 0.2}]})
    depths = [np.reshape(pose, (4, 4))[2, 3] for pose in path.flat_poses(start, 10)]
    assert depths == pytest.approx([7.1, 7.2])


@pytest.mark.parametrize(
    ("body", "field", "allowed"),
    [
        ({}, "body", "either `poses` or `actions`"),
        ({"poses": []}, "poses", "at least 1"),
        ({"poses": [{}]}, "poses[0]", "either `matrix`"),
        ({"poses": [{"matrix": IDENTITY, "position": [0, 0, 0]}]}, "poses[0]", "either `matrix`"),
        ({"poses": [{"matrix": "abc"}]}, "poses[0].matrix", "a list"),
        ({"poses": [IDENTITY]}, "poses[0]", '{"matrix": [16 numbers, row by row]}'),
        ({"poses": [{"matrix": [IDENTITY[:4]] * 3}]}, "poses[0].matrix", "4 rows of 4"),
        ({"poses": [{"matrx": IDENTITY}]}, "poses[0].matrx", "no such field"),
        ({"poses": [{"matrix": IDENTITY}], "speed": 3}, "speed", "no such field"),
        ({"poses": [{"matrix": IDENTITY}], "axes": "blender"}, "axes", "opencv, opengl"),
        ({"actions": [{}]}, "actions[0]", "at least one of forward_m"),
        ({"actions": [{"forward_m": 1e9}]}, "actions[0].forward_m", "at most 1000"),
        ({"actions": [{"forward_m": float("nan")}]}, "actions[0].forward_m", "a number of at"),
        ({"actions": [{"forward_m": 1}], "step_m": 0}, "step_m", "at least 0.001"),
    ],
)
def test_what_is_wrong_is_named(body: dict[str, object], field: str, allowed: str) -> None:
    with pytest.raises(ValidationError) as caught:
        PathIn.model_validate(body)
    fields = {one.field: one for one in invalid_request(caught.value).fields}
    assert field in fields, fields
    assert allowed in fields[field].allowed


@pytest.mark.parametrize(
    ("text", "field", "seen", "allowed"),
    [
        ("{}", "type", "nothing", 'as in "pose"'),
        ('{"type": "jump"}', "type", "jump", "open, pose, input, path, action"),
        ("{", "body", "{", "valid JSON (EOF"),
        ("[1, null]", "body", "[1, null]", "a JSON object"),
        ('{"type": "play", "paused": "perhaps"}', "play.paused", "perhaps", "true or false"),
        ('{"type": "input", "keys": 3}', "input.keys", "3", "a list"),
        ('{"type": "observe", "image": 3, "pose": {}}', "observe.image", "3", "a file"),
    ],
)
def test_what_can_not_be_read_on_a_stream_is_named(
    text: str, field: str, seen: str, allowed: str
) -> None:
    refused = from_text(text)
    assert isinstance(refused, InvalidRequest)
    problem = next(one for one in refused.fields if one.field == field)
    assert problem.seen == seen and allowed in problem.allowed


@pytest.mark.parametrize(
    ("text", "sequence"),
    [
        ('{"type": "jump", "sequence": 7}', 7),
        ('{"type": "seek", "sequence": -7}', 0),
        ('{"type": "seek", "sequence": 7', 0),
    ],
)
def test_what_can_not_be_read_on_a_stream_is_answered_by_its_number(
    text: str, sequence: int
) -> None:
    assert getattr(from_text(text), "sequence", None) == sequence


def test_a_word_that_is_empty_is_not_offered() -> None:
    with pytest.raises(ValidationError) as caught:
        OpenMessage.model_validate({"format": "png"})
    assert invalid_request(caught.value).fields[0].allowed == "jpeg, webp, raw or h264"


def test_long_values_are_cut() -> None:
    with pytest.raises(ValidationError) as caught:
        PathIn.model_validate({"poses": "x" * 10_000})
    assert len(invalid_request(caught.value).fields[0].seen) < 200


def test_of_a_long_list_only_what_is_told_is_looked_at() -> None:
    seen = []

    class File(bytes):
        def __len__(self) -> int:
            seen.append(self)
            return 3

    assert shown([File(), 1.5]) == '["3 bytes", 1.5]'
    assert shown([[File()]] * 10_000).endswith(" ...") and len(seen) < 100
    assert shown(dict.fromkeys(map(str, range(3)), 1)) == "0, 1, 2"


@pytest.mark.parametrize("kind", [PathIn, PoseIn, ForkIn, RewindIn, SnapshotIn, VideoForm])
def test_more_fields_than_anything_has_are_one_finding(kind: type[BaseModel]) -> None:
    """4,000 findings take ten milliseconds to write down, and nobody reads them."""
    with pytest.raises(ValidationError) as caught:
        kind.model_validate({f"x{index}": 1 for index in range(4_000)})
    assert caught.value.error_count() == 1
    (problem,) = invalid_request(caught.value).fields
    assert problem.field == "body" and problem.seen.startswith("x0, x1, ")
    assert problem.allowed == "at most 64 fields, not 4,000"


def test_no_message_has_more_fields_than_one_may() -> None:
    def kinds(of: type[BaseModel]) -> Iterator[type[BaseModel]]:
        for kind in of.__subclasses__():
            yield from (kind, *kinds(kind))

    assert max(len(kind.model_fields) for kind in kinds(Closed)) <= MAX_FIELDS


def test_a_path_of_poses_that_is_too_long_is_refused() -> None:
    path = PathIn.model_validate({"poses": [{"matrix": IDENTITY}] * 11})
    with pytest.raises(InvalidRequest, match="11 poses"):
        path.flat_poses(np.eye(4), 10)


def test_stream_messages_are_told_apart_by_type() -> None:
    pose = CLIENT_MESSAGE.validate_json(json.dumps({"type": "pose", "matrix": IDENTITY}))
    action = CLIENT_MESSAGE.validate_json('{"type":"action","actions":[{"yaw_deg":4}]}')
    assert isinstance(pose, PoseMessage)
    assert isinstance(action, PathMessage)
    with pytest.raises(ValidationError, match="type"):
        CLIENT_MESSAGE.validate_json('{"type":"jump"}')
