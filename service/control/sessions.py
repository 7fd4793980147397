"""Session records, a client's handle on a World: created, read, kept alive and deleted here.

A record is one Redis hash, advanced by commits. Its `version` counts state changes and is the ETag.
Deleting leaves a tombstone, so that whoever still owns the session can write nothing more; its
objects in the store go with the next sweep.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import secrets
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal

import structlog
from pydantic import BaseModel, ConfigDict, Field
from redis.asyncio import Redis
from redis.exceptions import RedisError

from service.auth.audit import audit
from service.control import keys, scripts
from service.control.batches import Argument, Pipelined
from service.control.deletion import bury, deleted_path, entomb
from service.control.requests import Init, Pose, Progress, RequestLog, new_request_id
from service.errors import (
    MirageError,
    SessionDeleted,
    StoreDown,
    TooManyRequests,
    Unavailable,
    UnknownSession,
    VersionConflict,
    problem_document,
)
from service.settings import Settings
from service.store.segments import SegmentStore, Upload

if TYPE_CHECKING:  # a head holds what a session is opened with
    from service.control.heads import Head, Heads

LOG = structlog.get_logger()
SESSION_ID = re.compile(r"s[0-9a-f]{23}")
IDENTITY: list[float] = [float(i % 5 == 0) for i in range(16)]


class SessionState(StrEnum):
    WAITING = "waiting"  # there is work and no worker has taken it
    ACTIVE = "active"  # a worker owns it
    IDLE = "idle"  # nothing to do
    FAILED = "failed"  # its first image could not be opened, or an operator has to mend it
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

    @property
    def fov_deg(self) -> float:
        """The frame's horizontal field of view."""
        left, right = math.atan(self.cx / self.fx), math.atan((self.width - self.cx) / self.fx)
        return math.degrees(left + right)


class NewSession(BaseModel):
    """What a session is opened with; never changes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    owner: str = ""  # the API key's name; "" where there are no keys
    seed: int = Field(0, ge=0, lt=2**63)
    memory: Literal["latent", "null", "rgb"] = "latent"
    intrinsics: Intrinsics
    pose: Pose = Field(default=IDENTITY)  # of the first image: world_from_camera
    origin: str = ""  # "fork:<session>", "import:<session>"; "" = opened from an image


class Session(NewSession):
    """A session as it stands."""

    id: str
    state: SessionState
    version: int
    branch: int
    branch_first_frame: int = 0  # frames before it are shared with the branch it left
    moved_by: str = ""  # the request that last moved the head: a fork or rewind done halfway
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


@dataclass(frozen=True)
class Usage:
    """How many sessions there are, and how many wait for something."""

    num_sessions: int
    waiting: dict[str, int]


class Page(BaseModel):
    items: list[Session]
    next_cursor: str | None


def new_session_id() -> str:
    """Sorts by time of creation (milliseconds), then at random."""
    return f"s{int(time.time() * 1000):011x}{secrets.token_hex(6)}"


def is_session_id(text: str) -> bool:
    """Whether it has the form of one; the session itself may be gone."""
    return SESSION_ID.fullmatch(text) is not None


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
        self,
        redis: Redis,
        settings: Settings,
        store: SegmentStore,
        requests: RequestLog,
        heads: Heads,
    ) -> None:
        self._redis: Any = redis  # redis-py's types mix its sync and async answers
        self._pipelined = Pipelined(redis)
        self._settings = settings
        self._store, self._requests, self._heads = store, requests, heads
        self._unreadable: set[str] = set()  # told already

    async def create(
        self,
        new: NewSession,
        upload: Upload,
        scale_m: float | None = None,
        max_sessions: int | None = None,
        session: str | None = None,
    ) -> Session:
        """Store the first image and open a session on it, under this id if one is given; raises
        TooManyRequests past the settings `max_sessions` and `max_sessions_per_key`, and past what
        its key may have.
        """
        session, request_id = session or new_session_id(), new_request_id()
        await self.reserve(session, new.owner, max_sessions)
        blob = await self._store.put_upload(session, upload)
        init = Init(blob=blob, pose=new.pose, scale_m=scale_m)
        head = await self._heads.first(session, new, init, request_id)
        await self.adopt(head, self._first_entry(init, request_id))
        await self._requests.wake(session)
        audit("session created", session=session)
        return await self.get(session)

    async def reserve(self, session: str, owner: str, max_sessions: int | None = None) -> None:
        """Make room for a new session; raises TooManyRequests.

        A short expiry is written first: if this process dies half-way, the sweeper removes what it
        left; if not, the sweeper finds the record's own expiry and moves it there.
        """
        if await self._redis.zscore(keys.index(owner), session) is None:  # else: a second try
            await self.check_room(owner, max_sessions)
        most = self._most_per_key(owner, max_sessions)
        room: list[Argument] = [session, most]
        if not await scripts.run(self._redis, "reserve", [keys.index(owner)], room):
            raise _full_key(most)
        now = time.time()
        await self._redis.zadd(keys.EXPIRY, {session: now + self._creation_s})
        await self._redis.set(keys.reservation(session), "", ex=keys.CREATION_S)
        await self._redis.zadd(keys.COLLECT, {session: now + self._settings.collect_grace_s})

    @property
    def _creation_s(self) -> float:
        """When the sweeper looks at a session that is being made: not after its own expiry."""
        return min(keys.CREATION_S, self._settings.session_idle_s)

    async def usage(self) -> Usage:
        """For the metrics."""
        return Usage(
            num_sessions=await self._redis.zcard(keys.EXPIRY),
            waiting={
                "worker": await self._redis.xlen(keys.WAKE),
                "removal": await self._redis.zcount(keys.GRAVES, "-inf", time.time()),
                "collection": await self._redis.zcount(keys.COLLECT, "-inf", time.time()),
            },
        )

    async def keep_reserved(self, session: str) -> None:
        """Say, until cancelled, that a session which takes long to make is still being made."""
        while True:
            await asyncio.sleep(keys.CREATION_S / 4)
            try:
                await self._redis.expire(keys.reservation(session), keys.CREATION_S)
                expires_s = time.time() + self._creation_s
                await self._redis.zadd(keys.EXPIRY, {session: expires_s}, xx=True)
            except (RedisError, OSError) as error:  # if it lasts, `adopt` refuses
                LOG.warning("session not kept reserved", session=session, error=str(error))

    async def abandon(self, session: str, owner: str) -> None:
        """Give up a session that was reserved and never written; its objects go with the next
        sweep, even those stored after a sweeper has given it up.
        """
        await self._redis.zadd(keys.EXPIRY, {session: time.time()})
        await self._redis.zrem(keys.index(owner), session)
        await bury(self._redis, session, "", "")

    async def check_room(self, owner: str, max_sessions: int | None = None) -> None:
        """Raise TooManyRequests if `owner` can't have another session now; `max_sessions`: that its
        key may have. Only `reserve` keeps others from taking the room meanwhile.
        """
        most = self._settings.max_sessions
        if await self._redis.zcard(keys.EXPIRY) >= most:
            raise TooManyRequests(
                f"there are already {most} sessions; delete one or wait",
                retry_after_s=30.0,
                limit="sessions",
            )
        most = self._most_per_key(owner, max_sessions)
        if await self._redis.zcard(keys.index(owner)) >= most:
            await self._prune_index(owner)
            if await self._redis.zcard(keys.index(owner)) >= most:
                raise _full_key(most)

    def _most_per_key(self, owner: str, max_sessions: int | None) -> int:
        settings = self._settings
        most = settings.max_sessions_per_key if owner else settings.max_sessions  # "" is no key
        return most if max_sessions is None else min(most, max_sessions)

    async def _prune_index(self, owner: str) -> None:
        """Forget sessions whose creation was never finished."""
        old = f"s{int(1000 * (time.time() - keys.CREATION_S)):011x}"
        for name in await self._redis.zrangebylex(keys.index(owner), "-", f"({old}"):
            known = keys.record(name.decode()), keys.reservation(name.decode())
            if not await self._redis.exists(*known):
                await self._redis.zrem(keys.index(owner), name)

    async def restore(
        self, head: Head, homes: Collection[str], problem: MirageError | None = None
    ) -> bool:
        """Write a session that Redis has lost, with all that refers to it; whether it was new.

        `homes`: whose segments it uses; `problem`: why nobody may go on with it.
        """
        init = None if problem else head.init
        first = self._first_entry(init, head.init_request) if init else ()
        now, session = time.time(), head.session
        is_new = await self._write(head, first, problem) != b"exists"
        listed = {  # also if it was there: whoever wrote it may have come no further
            keys.index(head.spec.owner): 0.0,
            keys.EXPIRY: now + self._settings.session_idle_s,
            keys.COLLECT: now + self._settings.collect_grace_s,
            **{keys.forks(home): now for home in homes},
        }
        for key, score in listed.items():
            await self._redis.zadd(key, {session: score}, nx=True)
        if first and is_new:
            await self._requests.wake(session)
        return is_new

    async def adopt(self, head: Head, first: Sequence[Argument] = ()) -> None:
        """Write a session that was reserved, unless it exists; `first`: what stands in its log.

        Raises Unavailable if it took so long that a sweeper has removed what belongs to it.
        """
        session = head.session
        if await self._write(head, first, must_be_reserved=True) == b"gone":
            await self.abandon(session, head.spec.owner)
            raise Unavailable(
                f"session {session!r} took more than {keys.CREATION_S} s to make, with Redis or "
                "the store out of reach, and was given up; try again",
                retry_after_s=1.0,
            )

    async def _write(
        self,
        head: Head,
        first: Sequence[Argument],
        problem: MirageError | None = None,
        must_be_reserved: bool = False,
    ) -> bytes:
        """Write the record, manifest and names of a head; returns ok, exists or gone."""
        now = time.time()
        state = SessionState.WAITING if first else SessionState.IDLE
        fields: dict[str, Argument] = {
            "id": head.session,
            "state": (SessionState.FAILED if problem else state).value,
            "error": json.dumps(problem_document(problem)) if problem else "",
            "version": head.version,
            "spec": head.spec.model_dump_json(),
            "owner": head.spec.owner,
            "cursor": "0-0",
            "cursor_done": 0,
            "init_request": head.init_request,
            "created_s": head.created_s,
            "touched_s": now,
            "expires_s": now + self._settings.session_idle_s,
            **head.record(),
        }
        pairs: list[Argument] = [part for pair in fields.items() for part in pair]
        named = [part for one in head.names.values() for part in (one.name, one.model_dump_json())]
        entries = await asyncio.to_thread(head.lines) if head.is_long else head.lines()
        names = (
            keys.record, keys.log, keys.requests, keys.order, keys.manifest, keys.names,
            keys.reservation,
        )  # fmt: skip
        answer: bytes = await scripts.run(
            self._redis,
            "create",
            [name(head.session) for name in names],
            [
                "1" if must_be_reserved else "",
                len(pairs),
                *pairs,
                len(named),
                *named,
                len(entries),
                *entries,
                *first,
            ],
        )
        return answer

    @staticmethod
    def _first_entry(init: Init, request_id: str) -> list[Argument]:
        progress = Progress(id=request_id, kind=init.kind, total=1, created_s=time.time())
        return [request_id, init.kind, init.model_dump_json(), progress.model_dump_json()]

    async def get(self, session: str) -> Session:
        """Raises UnknownSession, or SessionDeleted while its tombstone stands."""
        fields = await self._pipelined.execute_command("HGETALL", keys.record(session))
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
        found = map(self._listed, names, records)
        items = [session for session in found if session is not None]
        return Page(items=items, next_cursor=names[limit - 1] if len(names) > limit else None)

    def _listed(self, name: str, fields: Mapping[bytes, bytes]) -> Session | None:
        """None for what is gone, and for a record that can't be read: it costs no other."""
        if not fields or fields.get(b"state") == SessionState.DELETED.value.encode():
            return None
        try:
            return parse_record(fields)
        except (ValueError, KeyError) as error:
            if name not in self._unreadable:
                self._unreadable.add(name)
                LOG.error("session can't be read", session=name, error=str(error)[:500])
            return None

    async def touch(self, session: str) -> None:
        """Keep an idle session alive for another `session_idle_s`."""
        now = time.time()
        expires_s = now + self._settings.session_idle_s
        state = await scripts.run(self._redis, "touch", [keys.record(session)], [now, expires_s])
        scripts.raise_for_state(session, state)
        await self._redis.zadd(keys.EXPIRY, {session: expires_s}, xx=True)

    async def keep_alive(self, session: str) -> None:
        """Say, until cancelled, that somebody watches; raises UnknownSession, SessionDeleted."""
        while True:
            try:
                await self.touch(session)
            except (RedisError, OSError) as error:  # as when it is full: there may be time left
                LOG.warning("session not kept alive", session=session, error=str(error))
            await asyncio.sleep(min(keys.TOUCH_S, self._settings.session_idle_s / 4))

    async def delete(self, session: str, if_version: int | None = None) -> None:
        """Delete; raises VersionConflict if the record is no longer at `if_version`."""
        version = "" if if_version is None else if_version
        answer = await bury(self._redis, session, version, "")
        if answer == "version":
            raise VersionConflict(
                f"session {session!r} is no longer at version {if_version}; read it again"
            )
        if answer in ("unknown", "deleted"):
            scripts.raise_for_state(session, answer.encode())
        audit("session deleted", session=session)
        try:
            await self._store.objects.put(deleted_path(session), b"deleted")
        except StoreDown as error:  # deleted all the same, unless Redis loses its data just now
            LOG.warning("deletion not marked", session=session, reason=error.detail)
            return
        try:
            await entomb(self._redis, session)  # again: the mark may have come after the last look
        except (RedisError, OSError) as error:
            LOG.warning("deletion not finished", session=session, error=str(error))


def _full_key(most: int) -> TooManyRequests:
    return TooManyRequests(
        f"this key may have {most} sessions at once; delete one, or wait until one expires",
        limit="sessions_per_key",
    )
