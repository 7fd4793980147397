"""Between protobuf messages and plain dictionaries as JSON and pydantic have them, by field name.

One contract has two notations: what REST answers as JSON, gRPC answers as a message with the same
fields. How: generic over descriptors; enums are lower-case words in JSON (`idle` for
SESSION_STATE_IDLE), times ISO 8601, an unset optional field None. Bytes have no JSON form and are
left out. Trade-off: some tens of microseconds a message, so frames are filled by hand.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Any, TypeVar

from google.protobuf import message_factory
from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

M = TypeVar("M", bound=Message)
WORD_START = re.compile(r"(?<!^)(?=[A-Z])")
# All of their fields are required, and proto3 sends no 0 of these
WHOLE = ("mirage.v1.Intrinsics", "mirage.v1.Seek")


def filled(kind: type[M], values: Mapping[str, Any]) -> M:
    """A message from a dictionary; None means unset, what it has no field for is left out."""
    message = kind()
    fields: Mapping[str, Any] = message.DESCRIPTOR.fields_by_name
    for name, value in values.items():
        if value is not None and name in fields:
            _set(message, fields[name], value)
    return message


def plain(message: Message) -> dict[str, Any]:
    """A dictionary from a message, with every field but bytes."""
    return {
        field.name: _plain_field(message, field)
        for field in message.DESCRIPTOR.fields
        if field.type != FieldDescriptor.TYPE_BYTES
    }


def given(message: Message) -> dict[str, Any]:
    """Only what was set, for a validator that has defaults of its own; bytes stay bytes, numbers of
    no word numbers.
    """
    found = {}
    for field, value in _given_fields(message):
        is_bytes = field.type == FieldDescriptor.TYPE_BYTES
        found[field.name] = value if is_bytes else _plain_value(field, value, given)
    return found


def _given_fields(message: Message) -> Iterable[tuple[FieldDescriptor, Any]]:
    if message.DESCRIPTOR.full_name in WHOLE:
        fields: Any = message.DESCRIPTOR.fields  # its stubs have two kinds of descriptors
        return [(field, getattr(message, field.name)) for field in fields]
    return message.ListFields()


def word(kind: EnumDescriptor, number: int) -> str:
    """SESSION_STATE_IDLE -> idle; a number that this version does not know -> unspecified."""
    value = kind.values_by_number.get(number)
    return "unspecified" if value is None else value.name[len(_prefix(kind)) :].lower()


def words(kind: EnumDescriptor) -> list[str]:
    """What a client may say where this is asked for."""
    return [word(kind, value.number) for value in kind.values if value.number]


def _set(message: Message, field: FieldDescriptor, value: Any) -> None:
    if _is_map(field):
        getattr(message, field.name).update(value)
    elif field.is_repeated:
        items = getattr(message, field.name)
        items.extend(_value(field, item) for item in value)
    elif field.message_type is not None:
        getattr(message, field.name).CopyFrom(_value(field, value))
    else:
        setattr(message, field.name, _value(field, value))


def _value(field: FieldDescriptor, value: Any) -> Any:
    if field.message_type is not None:
        if field.message_type.full_name == "google.protobuf.Timestamp":
            return _timestamp(value)
        return filled(message_factory.GetMessageClass(field.message_type), value)
    if field.enum_type is not None:
        return field.enum_type.values_by_name[_prefix(field.enum_type) + value.upper()].number
    return value


def _timestamp(value: datetime | str) -> Timestamp:
    moment = Timestamp()
    if isinstance(value, str):
        moment.FromJsonString(value)
    else:
        moment.FromDatetime(value)
    return moment


def _plain_field(message: Message, field: Any) -> Any:
    value = getattr(message, field.name)
    if field.has_presence and not message.HasField(field.name):
        return None
    return _plain_value(field, value, plain)


def _plain_value(field: FieldDescriptor, value: Any, nested: Any) -> Any:
    if _is_map(field):
        return dict(value)
    if field.is_repeated:
        if field.message_type is None and field.enum_type is None:
            return list(value)
        return [_plain_one(field, item, nested) for item in value]
    return _plain_one(field, value, nested)


def _plain_one(field: FieldDescriptor, value: Any, nested: Any) -> Any:
    if isinstance(value, Timestamp):
        return value.ToDatetime(UTC).isoformat()
    if field.message_type is not None:
        return nested(value)
    if field.enum_type is not None:
        is_told = nested is plain or value in field.enum_type.values_by_number
        return word(field.enum_type, value) if is_told else str(value)
    return value


@cache
def _is_map(field: FieldDescriptor) -> bool:
    kind = field.message_type
    return kind is not None and bool(kind.GetOptions().map_entry)


def _prefix(kind: EnumDescriptor) -> str:
    return WORD_START.sub("_", kind.name).upper() + "_"
