"""What clients say on a stream, after it was read from JSON or protobuf: checked, in one form.

`type` names the message; in protobuf that is the name of the oneof's field. Every message may carry
`sequence`, the client's own count, which answers repeat.
"""

from __future__ import annotations

import base64
import binascii
import math
from typing import Annotated, Literal

from google.protobuf.message import DecodeError
from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
)

from service.control.requests import View
from service.convert import given
from service.errors import FieldProblem, InvalidRequest
from service.limits import MAX_CAMERAS, MAX_INTEGER, MAX_NAME_CHARS
from service.paths import check_lists
from service.poses import flat, is_exact
from service.rest.problems import invalid_request
from service.schemas import Axes, Camera, Closed, Intrinsics, PathIn, PoseIn
from service.stream.inputs import DEFAULT_MOVE_M_PER_S, DEFAULT_TURN_DEG_PER_S, KEYS
from service.stream.pictures import Format
from service.stream.planes import KINDS, PlaneName
from service.stream.player import MAX_SPEED, MIN_SPEED
from service.wire import world_pb2 as pb

PROTOCOL = 1

Sequence = Annotated[int, Field(ge=0, lt=2**63)]
FrameNumber = Annotated[int, Field(ge=0, le=MAX_INTEGER)]
Stick = Annotated[float, Field(ge=-1, le=1)]


def _file(value: object) -> object:
    """Bytes from protobuf as they are; JSON has them in base64."""
    if not isinstance(value, str):
        return value
    try:
        return base64.b64decode(value, validate=True)
    except binascii.Error as error:
        raise ValueError(f"must be base64: {error}") from error


File = Annotated[bytes, BeforeValidator(_file)]


class OpenMessage(Closed):
    """How a stream should be: the first message on gRPC, the address' query on a WebSocket."""

    type: Literal["open"] = "open"
    sequence: Sequence = 0
    protocol: int = Field(PROTOCOL, ge=PROTOCOL, description="the newest version the client speaks")
    session: str = Field("", max_length=MAX_NAME_CHARS)
    after: int | None = Field(None, ge=-1, le=MAX_INTEGER, description="last frame the client has")
    branch: int | None = Field(
        None, ge=0, le=MAX_INTEGER, description="of that frame: what was rewound since is told"
    )
    cameras: list[Camera] = Field(
        [], max_length=MAX_CAMERAS, description="frames of these only; none: of all"
    )
    format: Format = ""
    quality: int = Field(0, ge=0, le=100, description="of JPEG, WebP, H.264; 0: as the server is")
    adaptive: bool = False
    planes: list[PlaneName] = Field(
        [], max_length=len(KINDS), description="sent beside the picture"
    )
    frames_per_s: float = Field(0, ge=0, le=240, description="play at this rate; 0: at once")
    lead_frames: int = Field(0, ge=0, le=1024, description="paths are made so far ahead of play")
    extrapolate: bool = Field(False, description="live poses as they will be on arrival")

    @field_validator("format", mode="before")
    @classmethod
    def _unspecified(cls, value: object) -> object:
        return "" if value == "unspecified" else value


class PoseMessage(PoseIn):
    """Live: show the world from here; a newer pose replaces one that was not begun."""

    type: Literal["pose"]
    axes: Axes = "opencv"
    sequence: Sequence = 0
    camera: Camera = 0
    client_time_ms: float | None = None

    def view(self) -> View:
        """In OpenCV axes; raises InvalidRequest."""
        pose = flat(self.pose(self.axes, "pose"))
        return View(pose, self.camera, self.sequence, self.client_time_ms)


class InputMessage(Closed):
    """What keyboard and gamepad hold, until the next such message."""

    type: Literal["input"]
    sequence: Sequence = 0
    camera: Camera = 0
    forward: Stick = 0
    right: Stick = 0
    up: Stick = 0
    yaw: Stick = 0
    pitch: Stick = 0
    keys: list[str] = Field([], max_length=32)
    move_m_per_s: float = Field(DEFAULT_MOVE_M_PER_S, gt=0, le=100)
    turn_deg_per_s: float = Field(DEFAULT_TURN_DEG_PER_S, gt=0, le=720)
    client_time_ms: float | None = None

    @field_validator("keys")
    @classmethod
    def _known(cls, keys: list[str]) -> list[str]:
        for key in keys:
            if key.lower() not in KEYS:
                raise ValueError(f"{key[:20]!r} is none of {', '.join(KEYS)}")
        return keys


class PathMessage(PathIn):
    """Every pose is rendered, in order."""

    type: Literal["path", "action"]
    sequence: Sequence = 0


class CancelMessage(Closed):
    type: Literal["cancel"]
    sequence: Sequence = 0
    id: str = Field(max_length=MAX_NAME_CHARS)


class ObserveMessage(Closed):
    """What was really seen, written into the memory."""

    type: Literal["observe"]
    sequence: Sequence = 0
    pose: PoseIn
    axes: Axes = "opencv"
    image: File
    depth: File | None = None
    mask: File | None = None
    fov_deg: float | None = None
    intrinsics: Intrinsics | None = None
    scale_m: float | None = None


class PlayMessage(Closed):
    """Pause, go on, faster, slower."""

    type: Literal["play"]
    sequence: Sequence = 0
    paused: bool | None = None
    speed: float | None = Field(None, ge=MIN_SPEED, le=MAX_SPEED)


class SeekMessage(Closed):
    """Rewind: what comes after this frame is forgotten."""

    type: Literal["seek"]
    sequence: Sequence = 0
    frame: FrameNumber


class ForkMessage(Closed):
    """A new session with this one's past."""

    type: Literal["fork"]
    sequence: Sequence = 0
    frame: FrameNumber | None = None
    seed: int | None = Field(None, ge=0, lt=MAX_INTEGER)


class PingMessage(Closed):
    type: Literal["ping"]
    sequence: Sequence = 0
    client_time_ms: float | None = None


AnyMessage = (
    OpenMessage
    | PoseMessage
    | InputMessage
    | PathMessage
    | CancelMessage
    | ObserveMessage
    | PlayMessage
    | SeekMessage
    | ForkMessage
    | PingMessage
)
ClientMessage = Annotated[AnyMessage, Field(discriminator="type")]
CLIENT_MESSAGE: TypeAdapter[AnyMessage] = TypeAdapter(ClientMessage)
Incoming = (
    AnyMessage | View | InvalidRequest
)  # what can't be read is answered, and the stream goes on


class Numbered(BaseModel):
    """What any message may say beside what it is about."""

    sequence: Sequence = 0


class InvalidMessage(InvalidRequest):
    """A message that can't be used, and its number."""

    def __init__(self, refused: InvalidRequest, sequence: int) -> None:
        super().__init__(refused.detail, fields=refused.fields, limit=refused.limit)
        self.sequence = sequence


def from_text(text: str) -> Incoming:
    """A JSON message, or what is wrong with it."""
    try:
        return CLIENT_MESSAGE.validate_json(text)
    except ValidationError as error:
        return InvalidMessage(invalid_request(error), _sequence_of(text))


def _sequence_of(text: str) -> int:
    """Of a message that can't be used otherwise; 0 if it has none."""
    try:
        return Numbered.model_validate_json(text).sequence
    except ValidationError:
        return 0


MOST_SEQUENCE = 2**63 - 1
AXES_KEPT = (pb.AXES_UNSPECIFIED, pb.AXES_OPENCV)


def from_bytes(data: bytes, max_poses: int) -> Incoming:
    """A protobuf message, or what is wrong with it; a path has up to `max_poses`."""
    try:
        return from_proto(pb.ClientMessage.FromString(data), max_poses)
    except DecodeError:
        problem = FieldProblem("message", f"{len(data)} bytes", "a mirage.v1.ClientMessage")
        return InvalidRequest("This is no protobuf message.", fields=(problem,))


def from_proto(received: pb.ClientMessage, max_poses: int) -> Incoming:
    """The same checks and the same words as for JSON."""
    if (view := _exact(received)) is not None:
        return view
    return checked(received, max_poses)


def _exact(received: pb.ClientMessage) -> View | None:
    """A live pose with nothing to convert, repair or refuse, which is what nearly all messages
    are; None: `checked` finds out what it is.
    """
    live = received.pose
    pose = live.pose
    values, time_ms = list(pose.matrix), live.client_time_ms
    is_plain = len(values) == 16 and not (pose.position or pose.quaternion)
    is_known = live.camera < MAX_CAMERAS and received.sequence <= MOST_SEQUENCE
    if not (is_plain and is_known and live.axes in AXES_KEPT):
        return None
    if not (is_exact(values) and math.isfinite(time_ms)):
        return None
    told_ms = time_ms if live.HasField("client_time_ms") else None
    return View(values, live.camera, received.sequence, told_ms)


def checked(received: pb.ClientMessage, max_poses: int) -> AnyMessage | InvalidRequest:
    """Any message, by way of the validator."""
    kind = received.WhichOneof("message")
    if kind is None:
        problem = FieldProblem("message", "nothing", "one of the fields of ClientMessage")
        empty = InvalidRequest("The message is empty.", fields=(problem,))
        return InvalidMessage(empty, received.sequence)
    try:
        check_lists(received.path, max_poses)
        body = given(getattr(received, kind))
        if kind == "pose":
            body |= body.pop("pose", {})
        values = body | {"type": kind, "sequence": received.sequence}
        return CLIENT_MESSAGE.validate_python(values)
    except ValidationError as error:
        return InvalidMessage(invalid_request(error), received.sequence)
    except InvalidRequest as error:
        return InvalidMessage(error, received.sequence)
