"""Mark and sweep over the segment store: what nothing refers to any more is removed, after a while.

Referred to are: the segments of manifests and snapshots, also those of forks, which name the
session under which they lie; head objects; uploads that wait in the log. A session knows its forks,
and registers each before it begins: so only those are asked, not all sessions. An object of a
living session is removed when nothing has referred to it for the whole grace period, twice looked
at, as a request that began before may still bring it back. A deleted session takes no more forks,
so what no other uses goes at once. Objects go one by one and nothing depends on the order, but for
the mark of deletion, which goes last: a crash leaves work for the next sweep, never damage.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import structlog
from redis.asyncio import Redis

from service import keys
from service.errors import SegmentMissing, SessionDeleted, UnknownSession
from service.heads import Head, Heads, head_path, snapshot_path
from service.objects import Listed
from service.requests import REQUEST, Init, Observe
from service.segments import SegmentStore, blob_path, segment_path
from service.sessions import deleted_path

LOG = structlog.get_logger()
GRAVE_AGAIN_S = 60.0  # how soon a deleted session is looked at again whose segments others use


@dataclass
class Marks:
    """What refers to the objects of one session."""

    paths: set[str] = field(default_factory=set)
    users: list[str] = field(default_factory=list)  # living forks, and theirs
    is_pending: bool = False  # a fork is just being made


class Collection:
    def __init__(self, redis: Redis, store: SegmentStore, heads: Heads, grace_s: float) -> None:
        self._redis: Any = redis  # redis-py's types mix its sync and async answers
        self._store, self._heads, self._grace_s = store, heads, grace_s

    async def forks(self, session: str) -> Marks:
        """What living forks of a session, and forks of those, use of its segments."""
        marks = Marks()
        await self._mark_forks(session, session, marks)
        return marks

    async def bury(self, session: str) -> int:
        """Remove the objects of a deleted session that no other uses; how many that were."""
        marks = await self.forks(session)
        last = deleted_path(session)
        found = [one.path for one in await self._store.objects.below(f"sessions/{session}")]
        doomed = [path for path in found if path not in marks.paths and path != last]
        if marks.is_pending:
            doomed = []
        await self._store.objects.delete(doomed)
        if marks.is_pending or marks.users:
            await self._redis.zadd(keys.GRAVES, {session: time.time() + GRAVE_AGAIN_S})
            return len(doomed)
        await self._store.objects.delete([last])
        await self._redis.delete(keys.forks(session))
        await self._redis.zrem(keys.GRAVES, session)
        return len(doomed)

    async def collect(self, session: str) -> int:
        """Look through the objects of a living session; how many were removed."""
        try:
            garbage = await self.garbage(session)
            due = await self._note(session, [one.path for one in garbage])
            if due:  # somebody may refer to it by now
                again = {one.path for one in await self.garbage(session)}
                due = [path for path in due if path in again]
                await self._store.objects.delete(due)
                await self._redis.zrem(keys.garbage(session), *due)
        except (UnknownSession, SessionDeleted):
            await self._redis.zrem(keys.COLLECT, session)
            return 0
        wait_s = max(1.0, self._grace_s) if len(garbage) > len(due) else keys.COLLECT_EVERY_S
        await self._redis.zadd(keys.COLLECT, {session: time.time() + wait_s}, xx=True)
        return len(due)

    async def garbage(self, session: str) -> list[Listed]:
        """Objects of a living session that nothing refers to, and that are no longer new.

        Raises UnknownSession, SessionDeleted.
        """
        if await self._redis.hget(keys.record(session), "state") == b"failed":
            return []  # somebody may have to choose which of its segments is the last
        listed = await self._store.objects.below(f"sessions/{session}")
        marks = await self.forks(session)
        marks.paths |= await self._own(session)
        old = time.time() - self._grace_s
        return [one for one in listed if one.path not in marks.paths and one.modified_s <= old]

    async def _note(self, session: str, paths: list[str]) -> list[str]:
        """Remember what is garbage since when; what has been for long enough."""
        key, now = keys.garbage(session), time.time()
        known = {name.decode() for name in await self._redis.zrange(key, 0, -1)}
        wanted_again = known - set(paths)
        if wanted_again:
            await self._redis.zrem(key, *wanted_again)
        if paths:
            await self._redis.zadd(key, dict.fromkeys(paths, now), nx=True)
        found = await self._redis.zrangebyscore(key, "-inf", now - self._grace_s)
        return [name.decode() for name in found]

    async def _own(self, session: str) -> set[str]:
        """What a living session itself refers to."""
        head = await self._heads.current(session)
        paths = await self._used_by(head, session)
        paths |= {snapshot_path(session, name.head) for name in head.names.values()}
        newest = (await self._heads.ids(session))[-keys.HEADS_KEPT :]
        paths |= {head_path(session, name) for name in newest}
        for _, fields in await self._redis.xrange(keys.log(session)):
            message = REQUEST.validate_json(fields[b"body"])
            if isinstance(message, Init | Observe):
                paths.add(blob_path(session, message.blob))
        return paths

    async def _used_by(self, head: Head, home: str) -> set[str]:
        """The segments under `home` that a World and its snapshots are made of."""
        manifests = [head.manifest]
        for name in head.names.values():
            try:
                manifests.append((await self._heads.named(head, name.name)).manifest)
            except SegmentMissing as error:
                LOG.error("snapshot lost", session=head.session, reason=error.detail)
        return {
            segment_path(home, entry.id)
            for manifest in manifests
            for entry in manifest
            if (entry.home or head.session) == home
        }

    async def _mark_forks(self, session: str, home: str, marks: Marks) -> None:
        """Add what the forks of `session` use of `home`; forget forks that left nothing behind."""
        for name, since_s in await self._redis.zrange(keys.forks(session), 0, -1, withscores=True):
            fork = name.decode()
            await self._mark_forks(fork, home, marks)
            try:
                head = await self._heads.current(fork)
            except (UnknownSession, SessionDeleted) as error:
                is_new = time.time() - since_s < keys.CREATION_S
                marks.is_pending |= is_new and isinstance(error, UnknownSession)
                if not is_new and not await self._redis.exists(keys.forks(fork)):
                    await self._redis.zrem(keys.forks(session), fork)
            else:
                marks.paths |= await self._used_by(head, home)
                marks.users.append(fork)
