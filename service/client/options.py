"""What a stream's messages are made of: keywords, checked before they are sent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor import FieldDescriptor

from service.convert import filled, words
from service.wire import world_pb2 as pb

UNFIT = (AttributeError, KeyError, TypeError, ValueError)  # of protobuf, which names no field
FORMS = {
    FieldDescriptor.CPPTYPE_DOUBLE: "a number",
    FieldDescriptor.CPPTYPE_BOOL: "True or False",
    FieldDescriptor.CPPTYPE_MESSAGE: "a dictionary",
    FieldDescriptor.CPPTYPE_INT64: "a whole number",
}  # all others: a whole number from 0 on


def message_of(kind: str, number: int, values: Mapping[str, Any]) -> pb.ClientMessage:
    """Raises TypeError for what there is no field for, ValueError for what a field can't hold."""
    described = pb.ClientMessage.DESCRIPTOR.fields_by_name[kind].message_type
    _check_known(described, values, kind)
    try:
        return filled(pb.ClientMessage, {"sequence": number, kind: values})
    except UNFIT as error:
        raise ValueError(_unfit(described, values, kind) or f"{kind}: {error}") from None


def _check_known(kind: Any, values: Mapping[str, Any], what: str) -> None:
    """Refuse what a message would be sent without; raises TypeError."""
    for name, value in values.items():
        if (field := kind.fields_by_name.get(name)) is None:
            known = ", ".join(kind.fields_by_name)
            raise TypeError(f"{what}: there is no option {name!r}; there are {known}")
        if field.message_type is not None:
            for one in _parts(value):
                _check_known(field.message_type, one, f"{what}: {name}")


def _unfit(kind: Any, values: Mapping[str, Any], what: str) -> str:
    """The first field that can't hold its value, as a message; "" if there is none."""
    for name, value in values.items():
        field = kind.fields_by_name[name]
        try:
            filled(message_factory.GetMessageClass(kind), {name: value})
        except UNFIT:
            place = f"{what}: {name}"
            inner = [_unfit(field.message_type, one, place) for one in _parts(value)]
            return next(filter(None, inner), f"{place}: {_form(field)}; got {value!r}")
    return ""


def _parts(value: Any) -> list[Mapping[str, Any]]:
    """The dictionaries in it."""
    items = value if isinstance(value, list | tuple) else (value,)
    return [one for one in items if isinstance(one, Mapping)]


def _form(field: FieldDescriptor) -> str:
    if field.enum_type is not None:
        form = "one of " + ", ".join(words(field.enum_type))
    elif field.type == FieldDescriptor.TYPE_BYTES:
        form = "bytes"
    elif field.type == FieldDescriptor.TYPE_STRING:
        form = "text"
    else:
        form = FORMS.get(field.cpp_type, "a whole number from 0 on")
    return f"a list, each {form}" if field.is_repeated else form
