"""What clients say on a stream, after it was read from JSON or protobuf: checked, in one form.

`type` names the message; in protobuf that is the name of the oneof's field. Every message may carry
`sequence`, the client's own count, which answers repeat.
"""

from __future__ import annotations

from typing import Annotated, Literal

from google.protobuf.message import DecodeError
from pydantic import Field, TypeAdapter, ValidationError

from service.convert import given
from service.errors import FieldProblem, InvalidRequest
from service.rest.problems import invalid_request
from service.schemas import Axes, Camera, Closed, PathIn, PoseIn
from service.wire import world_pb2 as pb

Sequence = Annotated[int, Field(ge=0, lt=2**63)]


class OpenMessage(Closed):
    """How this stream should be; may come first, or not at all."""

    type: Literal["open"]
    sequence: Sequence = 0
    protocol: int = 1
    session: str = ""
    after: int | None = Field(None, ge=-1, le=2**53)


class PoseMessage(PoseIn):
    """Live: show the world from here; a newer pose replaces one that was not begun."""

    type: Literal["pose"]
    axes: Axes = "opencv"
    sequence: Sequence = 0
    camera: Camera = 0
    client_time_ms: float | None = None


class PathMessage(PathIn):
    """Every pose is rendered, in order."""

    type: Literal["path", "action"]
    sequence: Sequence = 0


class CancelMessage(Closed):
    type: Literal["cancel"]
    sequence: Sequence = 0
    id: str


class PingMessage(Closed):
    type: Literal["ping"]
    sequence: Sequence = 0
    client_time_ms: float | None = None


AnyMessage = OpenMessage | PoseMessage | PathMessage | CancelMessage | PingMessage
ClientMessage = Annotated[AnyMessage, Field(discriminator="type")]
CLIENT_MESSAGE: TypeAdapter[AnyMessage] = TypeAdapter(ClientMessage)
Incoming = AnyMessage | InvalidRequest  # what can't be read is answered, and the stream goes on


def from_text(text: str) -> Incoming:
    """A JSON message, or what is wrong with it."""
    try:
        return CLIENT_MESSAGE.validate_json(text)
    except ValidationError as error:
        return invalid_request(error)


def from_bytes(data: bytes) -> Incoming:
    """A protobuf message, or what is wrong with it."""
    try:
        return from_proto(pb.ClientMessage.FromString(data))
    except DecodeError:
        problem = FieldProblem("message", f"{len(data)} bytes", "a mirage.v1.ClientMessage")
        return InvalidRequest("This is no protobuf message.", fields=(problem,))


def from_proto(received: pb.ClientMessage) -> Incoming:
    """The same checks and the same words as for JSON."""
    kind = received.WhichOneof("message")
    if kind is None:
        problem = FieldProblem("message", "nothing", "one of the fields of ClientMessage")
        return InvalidRequest("The message is empty.", fields=(problem,))
    body = given(getattr(received, kind))
    if kind == "pose":
        body |= body.pop("pose", {})
    try:
        values = body | {"type": kind, "sequence": received.sequence}
        return CLIENT_MESSAGE.validate_python(values)
    except ValidationError as error:
        return invalid_request(error)
