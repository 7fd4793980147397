"""Fork, rewind and snapshot: what a client may ask of a World as a whole, on any transport.

Each is a request in the session's log, done by its owner in order, so asking returns at once with
its Progress; `wait` follows it.
"""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any, Self

from pydantic import BaseModel, Field, model_validator
from redis.asyncio import Redis

from service.control import keys, scripts
from service.control.heads import Name
from service.control.requests import Fork, Progress, RequestLog, Rewind, Snapshot
from service.control.sessions import Sessions, new_session_id
from service.errors import UnknownSnapshot
from service.limits import MAX_INTEGER
from service.schemas import Closed

POLL_S = 0.01  # at first; doubles up to MAX_POLL_S
MAX_POLL_S = 0.2
Frame = Annotated[int, Field(ge=0, le=MAX_INTEGER)]
SNAPSHOT_NAME = r"^\w[\w .:-]{0,63}$"
SnapshotName = Annotated[str, Field(pattern=SNAPSHOT_NAME)]


class ForkIn(Closed):
    """Where the new world begins: as this one stands, after `frame`, or as `snapshot`."""

    frame: Frame | None = Field(
        default=None, description="the last frame that is kept; chunks stay whole"
    )
    snapshot: SnapshotName | None = None
    seed: int | None = Field(
        default=None, ge=0, lt=MAX_INTEGER, description="another one imagines other things"
    )

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if self.frame is not None and self.snapshot is not None:
            raise ValueError("give `frame` or `snapshot`, not both")
        return self


class RewindIn(Closed):
    """Where to go back to: after `frame`, or to `snapshot`."""

    frame: Frame | None = Field(None, description="the last frame that is kept; chunks stay whole")
    snapshot: SnapshotName | None = None

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.frame is None) == (self.snapshot is None):
            raise ValueError("give either `frame` or `snapshot`")
        return self


class SnapshotIn(Closed):
    name: SnapshotName = Field(description="letters, digits, spaces and _ . : -")
    replace: bool = Field(False, description="let the name stand for this state from now on")


class SnapshotInfo(BaseModel):
    name: str
    branch: int
    num_frames: int
    created_s: float


class Branches:
    """Asked by gateways."""

    def __init__(self, redis: Redis, sessions: Sessions, requests: RequestLog) -> None:
        self._redis: Any = redis  # redis-py's types mix its sync and async answers
        self._sessions, self._requests = sessions, requests

    async def fork(
        self,
        session: str,
        ask: ForkIn,
        owner: str = "",
        max_sessions: int | None = None,
        request_id: str | None = None,
        target: str | None = None,
        by_guest: bool = False,
    ) -> Progress:
        """Ask for a new session of `owner`; when done, `result["session"]` is its id: `target`, if
        one is given. `by_guest`: who asks was only shown this one.

        Raises what RequestLog.append raises, and TooManyRequests if the owner has too many; so does
        the request, if there are too many by then.
        """
        await self._sessions.check_room(owner, max_sessions)
        target = target or new_session_id()
        fork = Fork(target=target, owner=owner, max_sessions=max_sessions, **ask.model_dump())
        return await self._requests.append(session, fork, request_id, by_guest=by_guest)

    async def rewind(
        self,
        session: str,
        ask: RewindIn,
        if_version: int | None = None,
        request_id: str | None = None,
    ) -> Progress:
        """Ask to go back; when done, `result` says the new `branch` and `num_frames`."""
        message = Rewind(**ask.model_dump())
        return await self._requests.append(session, message, request_id, if_version)

    async def snapshot(
        self,
        session: str,
        ask: SnapshotIn,
        if_version: int | None = None,
        request_id: str | None = None,
    ) -> Progress:
        """Ask to name the state that the log leads to."""
        message = Snapshot(**ask.model_dump())
        return await self._requests.append(session, message, request_id, if_version)

    async def wait(self, session: str, request_id: str, wait_s: float = 10.0) -> Progress:
        """The request once it is final, or as it stands after `wait_s`."""
        deadline, pause_s = time.monotonic() + wait_s, POLL_S
        while True:
            progress = await self._requests.get(session, request_id)
            left_s = deadline - time.monotonic()
            if progress.state.is_final or left_s <= 0:
                return progress
            await asyncio.sleep(min(pause_s, left_s))
            pause_s = min(2 * pause_s, MAX_POLL_S)

    async def snapshots(self, session: str) -> list[SnapshotInfo]:
        """All names, oldest first."""
        await self._sessions.get(session)
        found = await self._redis.hvals(keys.names(session))
        names = sorted(map(Name.model_validate_json, found), key=lambda name: name.created_s)
        fields = set(SnapshotInfo.model_fields)
        return [SnapshotInfo(**name.model_dump(include=fields)) for name in names]

    async def forget(self, session: str, name: str) -> None:
        """Take a name back; what only it kept is collected later. Raises UnknownSnapshot."""
        both = [keys.record(session), keys.names(session)]
        answer = await scripts.run(self._redis, "unname", both, [name])
        scripts.raise_for_state(session, answer)
        if answer != b"ok":
            raise UnknownSnapshot(f"session {session!r} has no snapshot {name!r}")
        await self._redis.zadd(keys.COLLECT, {session: time.time() + keys.COLLECT_SOON_S}, xx=True)
