"""The request log: what clients want of one session, in order, as small messages; and how far each request has come.

Gateways append, the session's owner reads from a committed cursor = (entry, poses done), so there is no pending-entries
list and nothing to reclaim. Blobs (images, depth) are referenced, never inlined. Cancel is a flag that the next commit returns.
A live pose replaces the live pose before it that nobody started: newest wins, and the log stays short without a worker.
"""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from redis.asyncio import Redis

from service import keys
from service.errors import (
    FieldProblem,
    InvalidRequest,
    SessionDeleted,
    TooManyRequests,
    UnknownRequest,
    UnknownSession,
)
from service.scripts import script
from service.settings import Settings

PROTOCOL = 1

# world_from_camera, 4 x 4 row major, OpenCV axes, metres; validated as rigid at the edge
Pose = Annotated[list[float], Field(min_length=16, max_length=16)]


class Message(BaseModel):
    """The common head of every message; a newer protocol version is refused, never guessed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    protocol: Literal[1] = PROTOCOL


class Observe(Message):
    """Write what was really seen (the blob of an `Upload`) into the memory, as seen from `pose`."""

    kind: Literal["observe"] = "observe"
    blob: str
    pose: Pose


class Init(Message):
    """The first observation: opens the World; its reconstruction becomes frame 0."""

    kind: Literal["init"] = "init"
    blob: str
    pose: Pose


class Generate(Message):
    """Render every pose of a path, in chunks."""

    kind: Literal["generate"] = "generate"
    poses: list[Pose] = Field(min_length=1)
    client_time_ms: float | None = None


class LivePose(Message):
    """Render where the camera is now; a newer one replaces it as long as it is not begun."""

    kind: Literal["live"] = "live"
    pose: Pose
    sequence: int = 0  # the client's own count, echoed: gaps show what was skipped
    client_time_ms: float | None = None


Request = Annotated[Init | Observe | Generate | LivePose, Field(discriminator="kind")]
REQUEST: TypeAdapter[Init | Observe | Generate | LivePose] = TypeAdapter(Request)


class RequestState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        return self in (RequestState.DONE, RequestState.FAILED, RequestState.CANCELLED)


class Progress(BaseModel):
    """How far one request has come. Live poses have none: their frames are the answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    kind: str
    state: RequestState = RequestState.QUEUED
    total: int  # poses asked for; 0 for an observation
    done: int = 0
    first_frame: int | None = None
    last_frame: int | None = None
    error: dict[str, Any] | None = None  # a problem document, when failed
    created_s: float
    cancel_requested: bool = False


@dataclass(frozen=True)
class Entry:
    """One message as it lies in a session's log."""

    entry: str  # stream id: orders the log
    id: str  # request id
    message: Init | Observe | Generate | LivePose


def num_poses(message: Message) -> int:
    """Poses to render: what `Progress.total` counts."""
    if isinstance(message, Generate):
        return len(message.poses)
    return 1 if isinstance(message, LivePose | Init) else 0


def new_request_id() -> str:
    return f"r_{uuid.uuid4().hex[:20]}"
