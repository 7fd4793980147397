"""What a validator found, in plain words: the field, what was seen there and what is allowed.

`seen` repeats the refused value, cut short, so that a client sees what arrived rather than what it
believes it sent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import islice
from typing import Any

from starlette.datastructures import UploadFile

from service.control.branches import SNAPSHOT_NAME
from service.errors import FieldProblem
from service.limits import MAX_FIELD_PROBLEMS, MAX_SEEN_CHARS

BODY = "body"  # the whole of what was sent, where nothing in it is to blame
NUMBER, WHOLE, BOOLEAN, OBJECT = "a number", "a whole number", "true or false", "a JSON object"
# by pydantic's type of the error; filled in with its context
ALLOWED: Mapping[str, str] = {
    "bool_parsing": BOOLEAN,
    "bool_type": BOOLEAN,
    "bytes_type": "a file",
    "dict_type": OBJECT,
    "extra_forbidden": "no such field",
    "finite_number": "a finite number",
    "float_parsing": NUMBER,
    "float_type": NUMBER,
    "greater_than": "a number above {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "int_from_float": WHOLE,
    "int_parsing": WHOLE,
    "int_parsing_size": "a whole number of fewer digits",
    "int_type": WHOLE,
    "json_invalid": "valid JSON ({error})",
    "less_than": "a number below {lt}",
    "less_than_equal": "a number of at most {le}",
    "list_type": "a list",
    "literal_error": "{expected}",
    "model_attributes_type": OBJECT,
    "model_type": OBJECT,
    "string_pattern_mismatch": "text of the form {pattern}",
    "string_too_long": "at most {max_length} characters",
    "string_type": "text",
    "string_unicode": "text of whole characters",
    "too_long": "a list of at most {max_length}",
    "too_short": "a list of at least {min_length}",
    "union_tag_invalid": "{expected_tags}",
    "union_tag_not_found": 'the kind of message, as in "pose"',
}
PATTERNS = {
    SNAPSHOT_NAME: "1 to 64 letters, digits, spaces and _ . : -, a letter, digit or _ first"
}
ENVELOPE = {"type", "sequence"}  # of a stream's messages; where protobuf has them differs
QUOTED = ("literal_error", "union_tag_invalid")  # their words are names in quotation marks

Location = tuple[str | int, ...]


def field_problem(item: Any, location: Location, within: str, whole: str) -> FieldProblem:
    """One of pydantic's errors and where in what was sent it is; `within`: the field that holds
    what was validated; `whole`: what to call all of it.
    """
    kind, context = item["type"], item.get("ctx", {})
    if kind == "json_invalid" and location:  # FastAPI's: where the parser stopped
        problem = f"{context['error']} at character {location[0]}"
        return FieldProblem(whole, problem, "valid JSON")
    if kind.startswith("union_tag"):
        location = (*location, context["discriminator"].strip("'"))
    path = within
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    path = _cut(path)  # a name that is unknown may be as long as a message
    if kind == "missing":
        return FieldProblem(path or whole, "nothing", "required")
    if kind.startswith("union_tag"):
        return FieldProblem(path, shown(context.get("tag", "nothing")), _allowed(item))
    return FieldProblem(path or whole, shown(item.get("input")), _allowed(item))


def shown(value: object) -> str:
    """A value as its sender would write it, cut short."""
    if isinstance(value, Mapping):  # the names that were given say more than their values
        around = ENVELOPE if value.keys() >= ENVELOPE else ()
        names = (str(name) for name, one in value.items() if one is not None and name not in around)
        text = ", ".join(islice(names, MAX_FIELD_PROBLEMS)) or "nothing"
    elif isinstance(value, UploadFile):
        text = f"the file {value.filename}"
    elif isinstance(value, bytes):
        text = f"{len(value):,} bytes"
    else:
        text = value if isinstance(value, str) else _begun(value)
    return _cut(text)


def _begun(value: object) -> str:
    """JSON, but no more of a long list than is shown."""
    text = ""
    for piece in ENCODER.iterencode(value):
        text += piece
        if len(text) > MAX_SEEN_CHARS:
            break
    return text


ENCODER = json.JSONEncoder(default=shown)


def _cut(text: str) -> str:
    return text if len(text) <= MAX_SEEN_CHARS else f"{text[:MAX_SEEN_CHARS]} ..."


def _plain(limit: object) -> object:
    """1000 for the bound that was declared as a float."""
    return int(limit) if isinstance(limit, float) and limit.is_integer() else limit


def _allowed(item: Any) -> str:
    kind, context = item["type"], item.get("ctx", {})
    if item["msg"].startswith("Value error, Expected UploadFile"):
        return "a file, not text (curl: `-F name=@file`)"
    if context.get("pattern") in PATTERNS:
        return PATTERNS[context["pattern"]]
    if kind not in ALLOWED:  # a model's own words
        return str(item["msg"]).removeprefix("Value error, ")
    words = ALLOWED[kind].format(**{name: _plain(value) for name, value in context.items()})
    return words.replace("'", "").removeprefix(", ") if kind in QUOTED else words
