"""Messages as they come over the wire: measured, then parsed.

How: an item of a list that is two bytes on the wire takes fifty in memory, and 60 MB of such items
hold the event loop for seconds. So what of a message is not a file is limited, as in REST, before
it is parsed: only the fields around the files are looked at, and each counts for what it takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from starlette.exceptions import HTTPException

from service.errors import FieldProblem, InvalidRequest

M = TypeVar("M", bound=Message)
Fields = Mapping[int, FieldDescriptor]  # by number
VARINT, SIZED = 0, 2  # wire types
WIDTHS = {1: 8, 5: 4}  # of those that are fixed
MOST_SHIFT = 63  # of a varint
LEAST_BYTES = 64  # that a field takes in memory, about


def message_of(kind: type[M], data: bytes, most_bytes: int) -> M:
    """Raises HTTPException 413 if more than `most_bytes` of it are not files, InvalidRequest if it
    can't be read.
    """
    if is_longer(data, kind, most_bytes):
        seen = f"the message has {len(data):,} bytes"
        raise HTTPException(413, f"{seen}; without files it may have {most_bytes:,} at most")
    try:
        return kind.FromString(data)
    except DecodeError:
        problem = FieldProblem("message", f"{len(data):,} bytes", f"a {kind.DESCRIPTOR.full_name}")
        raise InvalidRequest("This is no protobuf message.", fields=(problem,)) from None


def is_longer(data: bytes, kind: type[Message], most_bytes: int) -> bool:
    """Whether more than `most_bytes` of a message are not files, or are nothing that can be told
    apart.
    """
    if len(data) <= most_bytes:
        return False
    fields: Any = kind.DESCRIPTOR.fields_by_number  # its stubs have two kinds of descriptors
    try:
        return _beside_files(memoryview(data), fields, most_bytes) > most_bytes
    except (IndexError, ValueError):
        return True


def _beside_files(data: memoryview, fields: Fields, most_bytes: int) -> int:
    """Counts no further than to what is too much; raises IndexError, ValueError if this is no
    message.
    """
    at = count = 0
    while at < len(data) and count <= most_bytes:
        began = at
        tag, start = _varint(data, at)
        number, wire_type, size = tag >> 3, tag & 7, 0
        if wire_type == SIZED:
            length, start = _varint(data, start)
            at = start + length
            size = _counted(data[start:at], fields.get(number), most_bytes)
        elif wire_type == VARINT:
            _, at = _varint(data, start)
        elif wire_type in WIDTHS:
            at = start + WIDTHS[wire_type]
        else:
            raise ValueError(f"wire type {wire_type}")
        count += max(start - began + size, LEAST_BYTES)
    return count


def _counted(data: memoryview, field: FieldDescriptor | None, most_bytes: int) -> int:
    if field is None:
        return len(data)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return 0
    kind = field.message_type
    if kind is None or all(one.type != FieldDescriptor.TYPE_BYTES for one in kind.fields):
        return len(data)
    return _beside_files(data, kind.fields_by_number, most_bytes)


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """The number at a place, and where it ends."""
    value = shift = 0
    while shift <= MOST_SHIFT:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
    raise ValueError("a varint has ten bytes at most")
