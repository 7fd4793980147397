"""Session records, a client's handle on a World: created, read, kept alive and deleted here.

A record is one Redis hash, advanced by commits. Its `version` counts state changes and is the ETag.
Deleting leaves a tombstone, so that whoever still owns the session can write nothing more; its
objects in the store go with the next sweep.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from redis.asyncio import Redis

from service import keys, scripts
from service.auth.audit import audit
from service.batches import Argument
from service.errors import Conflict, SessionDeleted, TooManyRequests, UnknownSession
from service.requests import Init, Pose, Progress, RequestLog, new_request_id
from service.segments import SegmentStore, Upload
from service.settings import Settings

IDENTITY: list[float] = [float(i % 5 == 0) for i in range(16)]


class SessionState(StrEnum):
    WAITING = "waiting"  # there is work and no worker has taken it
    ACTIVE = "active"  # a worker owns it
    IDLE = "idle"  # nothing to do
    FAILED = "failed"  # its first image could not be opened: it will never have frames
    DELETED = "deleted"


TRANSITIONS: Mapping[SessionState, frozenset[SessionState]] = {
    SessionState.WAITING: frozenset({SessionState.ACTIVE, SessionState.IDLE, SessionState.DELETED}),
    SessionState.ACTIVE: frozenset(SessionState) - {SessionState.ACTIVE},
    SessionState.IDLE: frozenset({SessionState.WAITING, SessionState.ACTIVE, SessionState.DELETED}),
    SessionState.FAILED: frozenset({SessionState.DELETED}),
    SessionState.DELETED: frozenset(),
}


def states_before(state: SessionState) -> frozenset[SessionState]:
    """The states that may become `state`."""
    return frozenset(before for before, after in TRANSITIONS.items() if state in after)


class Intrinsics(BaseModel):
    """Pinhole camera of a session's frames, in pixels, corner origin (a centre lies at +0.5)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fx: float = Field(gt=0)
    fy: float = Field(gt=0)
    cx: float
    cy: float
    width: int = Field(gt=0)
    height: int = Field(gt=0)


class NewSession(BaseModel):
    """What a session is opened with; never changes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    owner: str = ""  # the API key's name; "" where there are no keys
    seed: int = Field(0, ge=0, lt=2**63)
    memory: Literal["latent", "null", "rgb"] = "latent"
    intrinsics: Intrinsics
    pose: Pose = Field(default=IDENTITY)  # of the first image: world_from_camera


class Session(NewSession):
    """A session as it stands."""

    id: str
    state: SessionState
    version: int
    branch: int
    tip: str  # id of the last committed segment, "" before the first
    next_frame: int
    num_segments: int = 0
    num_points: int = 0
    num_bytes: int = 0  # of the memory and the recent latents
    coverage: float | None = None  # mean over the last chunk's cells
    weights: str = ""  # what made the World; "" before the first image was opened
    error: dict[str, Any] | None = None
    init_request: str
    created_s: float
    touched_s: float
    expires_s: float


class Page(BaseModel):
    items: list[Session]
    next_cursor: str | None


def new_session_id() -> str:
    """Sorts by time of creation (milliseconds), then at random."""
    return f"s{int(time.time() * 1000):011x}{secrets.token_hex(6)}"


def parse_record(fields: Mapping[bytes, bytes]) -> Session:
    """A session from its Redis hash; `spec` holds what never changes, as one JSON object."""
    text = {name.decode(): value.decode() for name, value in fields.items()}
    known = {name: text[name] for name in Session.model_fields if name in text}
    error = json.loads(text["error"]) if text.get("error") else None
    coverage = text.get("coverage") or None
    spec = json.loads(text["spec"])
    return Session.model_validate(known | spec | {"error": error, "coverage": coverage})


class Sessions:
    """The gateway's side of session records."""

    def __init__(
        self, redis: Redis, settings: Settings, store: SegmentStore, requests: RequestLog
    ) -> None:
        self._redis: Any = redis  # redis-py's types mix its sync and async answers
        self._settings = settings
        self._store, self._requests = store, requests

    async def create(
        self, new: NewSession, upload: Upload, scale_m: float | None = None
    ) -> Session:
        """Store the first image and open a session on it; raises TooManyRequests past
        `max_sessions`.

        A short expiry is written first: if this process dies half-way, the sweeper removes what it
        left; if not, the sweeper finds the record's own expiry and moves it there.
        """
        if await self._redis.zcard(keys.EXPIRY) >= self._settings.max_sessions:
            raise TooManyRequests(
                f"there are already {self._settings.max_sessions} sessions; delete one or wait",
                retry_after_s=30.0,
            )
        session = new_session_id()
        await self._redis.zadd(keys.EXPIRY, {session: time.time() + keys.CREATION_S})
        blob = await self._store.put_upload(session, upload)
        await self._write(session, new, Init(blob=blob, pose=new.pose, scale_m=scale_m))
        await self._redis.zadd(keys.index(new.owner), {session: 0})
        await self._requests.wake(session)
        audit("session created", session=session)
        return await self.get(session)

    async def check_quota(self, owner: str, most: int | None) -> None:
        """Raises TooManyRequests if `owner` has `most` sessions; None = any number."""
        if most is not None and await self._redis.zcard(keys.index(owner)) >= most:
            raise TooManyRequests(f"this key may have {most} sessions; delete one first")

    async def _write(self, session: str, new: NewSession, init: Init) -> None:
        now = time.time()
        progress = Progress(id=new_request_id(), kind=init.kind, total=1, created_s=now)
        fields: dict[str, Argument] = {
            "id": session,
            "state": SessionState.WAITING.value,
            "version": 1,
            "spec": new.model_dump_json(),
            "owner": new.owner,
            "branch": 1,
            "tip": "",
            "next_frame": 0,
            "cursor": "0-0",
            "cursor_done": 0,
            "init_request": progress.id,
            "created_s": now,
            "touched_s": now,
            "expires_s": now + self._settings.session_idle_s,
        }
        names = (keys.record, keys.log, keys.requests, keys.order)
        first: list[Argument] = [
            progress.id,
            init.kind,
            init.model_dump_json(),
            progress.model_dump_json(),
        ]
        pairs: list[Argument] = [part for pair in fields.items() for part in pair]
        await scripts.run(
            self._redis, "create", [name(session) for name in names], [*first, *pairs]
        )

    async def get(self, session: str) -> Session:
        """Raises UnknownSession, or SessionDeleted while its tombstone stands."""
        fields = await self._redis.hgetall(keys.record(session))
        if not fields:
            raise UnknownSession(f"there is no session {session!r}")
        if fields[b"state"] == SessionState.DELETED.value.encode():
            raise SessionDeleted(f"session {session!r} was deleted or has expired")
        return parse_record(fields)

    async def list(self, owner: str = "", limit: int = 50, cursor: str | None = None) -> Page:
        """An owner's sessions, newest first; pass `next_cursor` to go on."""
        last = f"({cursor}" if cursor else "+"
        ids = await self._redis.zrevrangebylex(keys.index(owner), last, "-", start=0, num=limit + 1)
        names = [name.decode() for name in ids]
        async with self._redis.pipeline(transaction=False) as pipe:
            for name in names[:limit]:
                pipe.hgetall(keys.record(name))
            records = await pipe.execute()
        deleted = SessionState.DELETED.value.encode()
        items = [parse_record(one) for one in records if one and one[b"state"] != deleted]
        return Page(items=items, next_cursor=names[limit - 1] if len(names) > limit else None)

    async def touch(self, session: str) -> None:
        """Keep an idle session alive for another `session_idle_s`."""
        now = time.time()
        expires_s = now + self._settings.session_idle_s
        state = await scripts.run(self._redis, "touch", [keys.record(session)], [now, expires_s])
        scripts.raise_for_state(session, state)
        await self._redis.zadd(keys.EXPIRY, {session: expires_s}, xx=True)

    async def delete(self, session: str, if_version: int | None = None) -> None:
        """Delete; raises Conflict if the record is no longer at `if_version`."""
        version = "" if if_version is None else if_version
        answer = await bury(self._redis, session, version, "")
        if answer == "version":
            raise Conflict(
                f"session {session!r} is no longer at version {if_version}; read it again"
            )
        if answer in ("unknown", "deleted"):
            scripts.raise_for_state(session, answer.encode())
        audit("session deleted", session=session)


async def bury(redis: Redis, session: str, version: int | str, expired_by_s: float | str) -> str:
    """Delete under conditions; returns ok, unknown, deleted, version or alive."""
    names = [
        keys.record, keys.lease, keys.log, keys.manifest,
        keys.frames, keys.requests, keys.order, keys.cancels, keys.shares,
    ]  # fmt: skip
    answer = await scripts.run(
        redis,
        "delete",
        [name(session) for name in names],
        [version, expired_by_s, keys.TOMBSTONE_S],
    )
    outcome: str = answer[0].decode()
    if outcome in ("ok", "deleted"):
        await redis.zrem(keys.index(answer[1].decode()), session)
    listed = await redis.zscore(keys.EXPIRY, session) is not None
    if listed and outcome in ("ok", "deleted", "unknown"):
        await redis.zadd(keys.GRAVES, {session: time.time()})
        await redis.zrem(keys.EXPIRY, session)
    return outcome
