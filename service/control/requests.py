"""The request log: what clients want of one session, in order, and how far each request has come.

Gateways append, the session's owner reads from a committed cursor = (entry, poses done), so there
is no pending-entries list and nothing to reclaim. Blobs (images, depth) are referenced, never
inlined. Cancel is a flag that the next commit returns. A live pose replaces the one before it of
the same camera that nobody started: newest wins, and the log stays short without a worker.
"""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from pydantic_core import to_json
from redis.asyncio import Redis

from service.auth.audit import audit
from service.control import keys, scripts
from service.control.appends import Appends
from service.control.batches import Pipelined
from service.control.wake import Call, Waker
from service.errors import (
    Conflict,
    FieldProblem,
    InvalidRequest,
    TooManyRequests,
    UnknownRequest,
    VersionConflict,
)
from service.settings import Settings
from service.tracing import current_parent

# world_from_camera, 4 x 4 row major, OpenCV axes, metres; validated as rigid at the edge
Pose = Annotated[list[float], Field(min_length=16, max_length=16)]

# which of a shared World's cameras: each has its own live poses and its own stream of frames
Camera = Annotated[int, Field(ge=0, lt=16)]


class Message(BaseModel):
    """The common head of every message; a newer protocol version is refused, never guessed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    protocol: Literal[1] = 1
    trace: str = ""  # `traceparent` of what asked for this, where traces are recorded


class Observe(Message):
    """Write what was really seen (the blob of an `Upload`) into the memory, as seen from `pose`."""

    kind: Literal["observe"] = "observe"
    blob: str
    pose: Pose
    scale_m: float | None = None  # without depth: metres to what stands at the image's centre


class Init(Message):
    """The first observation: opens the World; its reconstruction becomes frame 0."""

    kind: Literal["init"] = "init"
    blob: str
    pose: Pose
    scale_m: float | None = None


class Generate(Message):
    """Render every pose of a path, in chunks."""

    kind: Literal["generate"] = "generate"
    poses: list[Pose] = Field(min_length=1)
    camera: Camera = 0
    client_time_ms: float | None = None


class LivePose(Message):
    """Render where the camera is now; a newer one of the same camera replaces it as long as it is
    not begun.
    """

    kind: Literal["live"] = "live"
    pose: Pose
    camera: Camera = 0
    sequence: int = 0  # the client's own count, echoed: gaps show what was skipped
    client_time_ms: float | None = None


class View(NamedTuple):
    """What a live pose says, checked at the edge already."""

    pose: list[float]
    camera: int = 0
    sequence: int = 0
    client_time_ms: float | None = None


class Fork(Message):
    """Open another session on this World as it stands, as it was after a frame, or as it was named.

    The new session's id is chosen by who asks, so that doing it twice makes one session.
    """

    kind: Literal["fork"] = "fork"
    target: str
    owner: str = ""  # of the new session
    max_sessions: int | None = None  # that the key which asks may have; None = no limit
    frame: int | None = None
    snapshot: str | None = None
    seed: int | None = None  # of the new session; None = the same


class Rewind(Message):
    """Go back to a frame or a named state; what came after it is no longer this World's."""

    kind: Literal["rewind"] = "rewind"
    frame: int | None = None
    snapshot: str | None = None


class Snapshot(Message):
    """Name the World as it stands."""

    kind: Literal["snapshot"] = "snapshot"
    name: str
    replace: bool = False  # another state of that name


AnyRequest = Init | Observe | Generate | LivePose | Fork | Rewind | Snapshot
Request = Annotated[AnyRequest, Field(discriminator="kind")]
REQUEST: TypeAdapter[AnyRequest] = TypeAdapter(Request)


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
    result: dict[str, Any] | None = None  # of a fork, rewind or snapshot, when done
    created_s: float
    cancel_requested: bool = False


@dataclass(frozen=True)
class Entry:
    """One message as it lies in a session's log."""

    entry: str  # stream id: orders the log
    id: str  # request id
    message: AnyRequest


def num_poses(message: Message) -> int:
    """Poses to render: what `Progress.total` counts."""
    if isinstance(message, Generate):
        return len(message.poses)
    return 1 if isinstance(message, LivePose | Init) else 0


def new_request_id() -> str:
    return f"r_{os.urandom(10).hex()}"


def live_body(live: LivePose | View, trace: str) -> bytes:
    """A live pose as it lies in the log, written at once: they come ten times a second."""
    body = {
        "protocol": 1,
        "trace": trace,
        "kind": "live",
        "pose": live.pose,
        "camera": live.camera,
        "sequence": live.sequence,
        "client_time_ms": live.client_time_ms,
    }
    return to_json(body, inf_nan_mode="null")


class RequestLog:
    """The gateway's side of a session's requests."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self._redis: Any = redis  # redis-py's types mix its sync and async answers
        self._pipelined = Pipelined(redis)
        self._waker = Waker(redis, settings.lease_s)
        self._appends = Appends(redis, self._waker, settings.lease_s)
        self._settings = settings

    async def append(
        self,
        session: str,
        message: Observe | Generate | Fork | Rewind | Snapshot,
        request_id: str | None = None,
        if_version: int | None = None,
        by_guest: bool = False,
    ) -> Progress:
        """Add to the log and wake whoever should look; the same `request_id` twice is appended
        once. Guests leave the owner half of the backlog, and its progress records.

        Raises UnknownSession, SessionDeleted, Conflict (failed), VersionConflict (no longer at
        `if_version`), InvalidRequest (path too long), TooManyRequests (backlog).
        """
        self._check(message)
        progress = Progress(
            id=request_id or new_request_id(),
            kind=message.kind,
            total=num_poses(message),
            created_s=time.time(),
        )
        if parent := current_parent():
            message = message.model_copy(update={"trace": parent})
        body = message.model_dump_json(exclude_none=True)  # an older worker knows no newer field
        request = (progress.id, message.kind, body, progress.model_dump_json())
        camera = getattr(message, "camera", 0)
        answer = await self._append(session, request, camera, if_version, by_guest)
        audit("request appended", session=session, request=progress.id, kind=message.kind)
        return Progress.model_validate_json(answer[2]) if answer[2] else progress

    async def append_live(
        self,
        session: str,
        live: LivePose | View,
        request_id: str | None = None,
        trace: str | None = None,
        by_guest: bool = False,
    ) -> str:
        """A live pose, of which no progress is kept; its request id. Raises as `append` does."""
        name = request_id or new_request_id()
        trace = current_parent() if trace is None else trace
        request = (name, "live", live_body(live, trace), "")
        await self._append(session, request, live.camera, by_guest=by_guest)
        return name

    async def _append(
        self,
        session: str,
        request: tuple[str, str, str | bytes, str],  # id, kind, body, the progress that is kept
        camera: int,
        if_version: int | None = None,
        by_guest: bool = False,
    ) -> Any:
        now, most = time.time(), self._settings.max_backlog
        most = (most + 1) // 2 if by_guest else most
        expires_s = now + self._settings.session_idle_s
        args = (
            *request,
            *(most, keys.REQUESTS_KEPT, now, expires_s, camera),
            "" if if_version is None else if_version,
        )
        answer = await self._appends.run(session, args, expires_s, by_guest)
        if answer[0] == b"version":
            raise _version_conflict(session, answer[1], if_version)
        self._raise_unless_ok(session, answer[0], most)
        return answer

    async def check_room(self, session: str, if_version: int | None = None) -> None:
        """Raise what `append` would raise now, before anything is stored for a request."""
        ask = self._pipelined.execute_command
        (state, version), num_waiting = await asyncio.gather(
            ask("HMGET", keys.record(session), "state", "version"),
            ask("XLEN", keys.log(session)),
        )
        scripts.raise_for_state(session, state or b"unknown")
        if if_version is not None and int(version) != if_version:
            raise _version_conflict(session, version, if_version)
        if num_waiting >= self._settings.max_backlog:
            self._raise_unless_ok(session, b"full", num_waiting)

    def _check(self, message: Message) -> None:
        most = self._settings.max_path_poses
        if isinstance(message, Generate) and len(message.poses) > most:
            seen = FieldProblem("poses", f"{len(message.poses)} poses", f"at most {most}")
            raise InvalidRequest(
                f"a path of {seen.seen} is too long: {seen.allowed}",
                fields=(seen,),
                limit="path_poses",
            )

    @staticmethod
    def _raise_unless_ok(session: str, answer: bytes, most: int) -> None:
        scripts.raise_for_state(session, answer)
        if answer == b"full":
            raise TooManyRequests(
                f"{most} requests of session {session!r} are waiting",
                retry_after_s=1.0,
                limit="backlog",
            )

    async def wake(self, session: str, lease: str = "", expires_s: float | None = None) -> None:
        """Tell the owner, or all workers, that there is work. Idempotent; the sweeper repairs what
        is lost.
        """
        await self._waker.wake(Call(session, lease, expires_s))

    async def get(self, session: str, request_id: str) -> Progress:
        """Raises UnknownRequest; live poses have no progress and are unknown."""
        ask = self._pipelined.execute_command
        state, progress, cancel = await asyncio.gather(
            ask("HGET", keys.record(session), "state"),
            ask("HGET", keys.requests(session), request_id),
            ask("SISMEMBER", keys.cancels(session), request_id),
        )
        if state in (None, b"deleted"):
            scripts.raise_for_state(session, state or b"unknown")
        if progress is None:
            raise UnknownRequest(f"session {session!r} has no request {request_id!r}")
        return _progress(progress, cancel)

    async def find(self, session: str, request_id: str) -> Progress | None:
        """The same; None if it is unknown."""
        try:
            return await self.get(session, request_id)
        except UnknownRequest:
            return None

    async def list(self, session: str) -> list[Progress]:
        """The last requests of a session (`REQUESTS_KEPT` at most, and as many by guests),
        oldest first.
        """
        found = await self._redis.hgetall(keys.requests(session))
        cancels = await self._redis.smembers(keys.cancels(session))
        every = [_progress(value, name in cancels) for name, value in found.items()]
        return sorted(every, key=lambda one: one.created_s)

    async def cancel(self, session: str, request_id: str) -> Progress:
        """Ask to end a request; takes effect within one step, and not at all once it is final."""
        names = (keys.record, keys.requests, keys.cancels, keys.lease)
        answer = await scripts.run(
            self._redis, "cancel", [name(session) for name in names], [request_id]
        )
        if answer[0] == b"no request":
            raise UnknownRequest(f"session {session!r} has no request {request_id!r}")
        scripts.raise_for_state(session, answer[0])
        audit("request cancelled", session=session, request=request_id)
        await self.wake(session, lease=answer[3].decode())
        return _progress(answer[1], answer[2])

    async def last_pose(self, session: str, camera: int = 0) -> Pose | None:
        """Where a camera will be once everything asked of it is done; None if nothing waits.

        Raises Conflict while a rewind waits.
        """
        entries = await self._redis.xrevrange(keys.log(session))
        for _, fields in entries:
            message = REQUEST.validate_json(fields[b"body"])
            if isinstance(message, Generate) and message.camera == camera:
                return message.poses[-1]
            if isinstance(message, LivePose) and message.camera == camera:
                return message.pose
            if isinstance(message, Rewind):
                raise Conflict(
                    "a rewind is waiting, so where the camera will be is not known yet; wait for "
                    "it, or give poses",
                    retry_after_s=1.0,
                )
            if isinstance(message, Init):
                return message.pose
        return None


def _version_conflict(session: str, version: bytes, if_version: int | None) -> VersionConflict:
    return VersionConflict(
        f"session {session!r} is at version {version.decode()}, no longer at {if_version}; "
        "read it again"
    )


def _progress(value: bytes, cancel: object) -> Progress:
    progress = Progress.model_validate_json(value)
    is_asked = bool(cancel) or progress.state is RequestState.CANCELLED  # then the flag is gone
    return progress.model_copy(update={"cancel_requested": is_asked})
