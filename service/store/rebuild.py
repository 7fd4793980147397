"""What happens when Redis comes back without its data: worlds are rebuilt from the segment store.

How: Redis and the store hold the same random marker. Redis without it, beside a store that has it,
has lost its data. Each session then continues from its newest head and the unique chain of segments
that descends from it (service/store/descent.py). Where two could be the last and nothing says which
was committed, or where one in between is missing or damaged, the tip is ambiguous: the session is
reported and stays shut, with all its objects, until it is mended or somebody chooses
(`mirage fsck --repair`, `--choose`). API keys and share links come back, too. Requests that waited
in the log are lost; frames that were published are not.
"""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import dataclass, field
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from service.control import keys
from service.control.deletion import deleted_path
from service.control.heads import Head, Heads
from service.control.sessions import Sessions
from service.errors import (
    ConfigurationError,
    ControlPlaneDown,
    MirageError,
    SegmentError,
    SegmentMissing,
    Unauthenticated,
    UnknownSession,
)
from service.store.descent import Doubt, descend
from service.store.kept import Kept
from service.store.segments import SegmentStore

LOG = structlog.get_logger()
MARKER = "marker.json"
LOCK_MS = 30_000  # renewed with every session; should one outlast it, two at once do no harm
VERSION_STEP = 100_000  # ahead of any version that was given out since the head was written


@dataclass
class Report:
    """What became of the sessions."""

    rebuilt: list[str] = field(default_factory=list)
    ambiguous: dict[str, Doubt] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)  # session -> why


class Rebuild:
    def __init__(
        self,
        redis: Redis,
        store: SegmentStore,
        sessions: Sessions,
        heads: Heads,
        kept: Kept,
    ) -> None:
        self._redis: Any = redis  # redis-py's types mix its sync and async answers
        self._store, self._sessions, self._heads, self._kept = store, sessions, heads, kept
        self._marker = ""  # as this process saw it in both places

    async def is_needed(self) -> bool:
        """Whether Redis has lost its data and is not whole again."""
        return not await self._redis.exists(keys.MARKER)

    async def doubted(self, error: MirageError) -> MirageError:
        """What to say instead of "there is no such thing" while not everything is there."""
        if not isinstance(error, UnknownSession | Unauthenticated):
            return error
        try:
            if not await self.is_needed():
                return error
        except (RedisError, OSError):
            return error
        return ControlPlaneDown(
            "Redis has lost its data and the worlds are being rebuilt", retry_after_s=1.0
        )

    async def ensure(self) -> Report | None:
        """Compare the markers; rebuild if Redis has lost its own. What was rebuilt, if anything.

        Raises ConfigurationError if this Redis and this store don't belong together, an empty
        store beside a Redis with sessions among them; ControlPlaneDown while another process
        rebuilds.
        """
        if self._marker and await self._here() == self._marker:
            return None
        stored = await self._stored()
        here = await self._here()  # looked at last, as it was written first
        if stored and not here:
            return await self._rebuild(stored)
        if not stored:
            stored = await self._begin()
        elif here != stored:
            raise ConfigurationError(
                "this Redis and this segment store belong to different services: set "
                "MIRAGE_REDIS_URL and MIRAGE_STORE_URL to a pair, one store for each Redis"
            )
        self._marker = stored
        return None

    async def _begin(self) -> str:
        """Mark a new store. Processes that start together agree on what Redis got first."""
        num_sessions = await self._redis.zcard(keys.EXPIRY)
        if num_sessions and not await self._store.objects.folders("sessions"):
            raise ConfigurationError(
                f"the segment store is empty, but this Redis knows {num_sessions} sessions: mount "
                "their store, or name it with MIRAGE_STORE_URL or MIRAGE_DATA_DIR; to give them "
                "up, empty Redis"
            )
        await self._redis.set(keys.MARKER, secrets.token_hex(16), nx=True)
        marker = await self._here()
        await self._store.objects.replace(MARKER, json.dumps({"marker": marker}).encode())
        return marker

    async def _here(self) -> str:
        return (await self._redis.get(keys.MARKER) or b"").decode()

    async def _stored(self) -> str:
        try:
            return str(json.loads(await self._store.objects.read(MARKER))["marker"])
        except SegmentMissing:
            return ""

    async def _rebuild(self, marker: str) -> Report:
        if not await self._redis.set(keys.REBUILDING, marker, nx=True, px=LOCK_MS):
            raise ControlPlaneDown(
                "Redis has lost its data and another process rebuilds the worlds",
                retry_after_s=1.0,
            )
        LOG.error("redis lost its data", what="rebuilding all worlds from the segment store")
        report = Report()
        await self._kept.restore()
        for session in await self._store.objects.folders("sessions"):
            await self._redis.pexpire(keys.REBUILDING, LOCK_MS)
            await self.session(session, report)
        await self._redis.set(keys.MARKER, marker)
        await self._redis.delete(keys.REBUILDING)
        self._marker = marker
        LOG.error("worlds rebuilt", rebuilt=len(report.rebuilt), lost=report.lost)
        return report

    async def session(self, session: str, report: Report) -> None:
        """Rebuild one session, or say why not; one that is there already is left alone."""
        objects = {one.path for one in await self._store.objects.below(f"sessions/{session}")}
        if deleted_path(session) in objects:
            await self._redis.zadd(keys.GRAVES, {session: time.time()})
            return
        try:
            head, doubt = await descend(self._store, await self._newest(session))
        except SegmentError as error:
            report.lost[session] = error.detail
            LOG.error("world lost", session=session, reason=error.detail)
            return
        head = head.model_copy(update={"version": head.version + VERSION_STEP})
        problem = doubt.problem() if doubt else None
        if doubt:
            report.ambiguous[session] = doubt
            unreached = len(doubt.unreached)  # of a long world: thousands
            LOG.error("world ambiguous", session=session, tips=doubt.tips, unreached=unreached)
        else:
            report.rebuilt.append(session)
        if await self._sessions.restore(head, await self._heads.homes(head), problem):
            await self._heads.write(head)  # else it would hide what the session does from now on

    async def _newest(self, session: str) -> Head:
        """The newest head that can be read; raises SegmentError if there is none."""
        problem: SegmentError = SegmentMissing("no head object lies in the store")
        for name in reversed(await self._heads.ids(session)):
            try:
                return await self._heads.get(session, name)
            except SegmentError as error:
                problem = error
        raise problem
