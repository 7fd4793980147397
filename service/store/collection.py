"""Mark and sweep over the segment store: what nothing refers to any more is removed, after a while.

Referred to are: the segments of manifests and snapshots, also those of forks, which name the
session under which they lie; head objects; uploads that wait in the log. A session knows its forks,
and registers each before it begins: so only those are asked, not all sessions. An object of a
living session is removed when nothing has referred to it for the whole grace period, twice looked
at, as a request that began before may still bring it back. A deleted session takes no more forks,
so what no other uses goes at once, and the session once a later look finds nothing more, as its
owner hears late of the deletion: its forks are known from then on to those whose segments they
use. Where something can't be read that may refer to objects,
all of them stay. Objects go one by one and nothing depends on the order, but for the mark of
deletion, which goes last: a crash leaves work for the next sweep, never damage.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import structlog
from redis.asyncio import Redis

from service.control import keys
from service.control.deletion import deleted_path, entomb
from service.control.heads import Head, Heads, head_path, snapshot_path
from service.control.requests import REQUEST, Init, Observe
from service.errors import SegmentCorrupt, SegmentMissing, SessionDeleted, UnknownSession
from service.store.objects import Listed
from service.store.segments import PARSE_ERRORS, SegmentStore, blob_path, segment_path

LOG = structlog.get_logger()
GRAVE_AGAIN_S = 60.0  # how soon a grave is looked into again in which something was found


@dataclass
class Marks:
    """What refers to the objects of one session."""

    paths: set[str] = field(default_factory=set)
    users: dict[str, set[str]] = field(default_factory=dict)  # living forks, and theirs -> homes
    is_certain: bool = True  # no fork is just being made, and all that may refer to them is read


class Collection:
    def __init__(self, redis: Redis, store: SegmentStore, heads: Heads, grace_s: float) -> None:
        self._redis: Any = redis  # redis-py's types mix its sync and async answers
        self._store, self._heads, self._grace_s = store, heads, grace_s
        self._reported: set[tuple[str, str]] = set()

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
        if not marks.is_certain:
            doomed = []
        is_kept = bool(marks.paths) or not marks.is_certain
        if is_kept and last not in found:  # without a head, a rebuild would call it lost
            await self._store.objects.put(last, b"deleted")
        await self._store.objects.delete(doomed)
        if is_kept or doomed:  # who had not heard of the deletion may just be storing more
            await entomb(self._redis, session, GRAVE_AGAIN_S)
            return len(doomed)
        await self._register(marks.users)
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
        await self._mark_own(session, marks)
        if not marks.is_certain:
            return []
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

    async def _mark_own(self, session: str, marks: Marks) -> None:
        """Add what a living session itself refers to."""
        head = await self._heads.current(session)
        await self._mark_segments(head, session, marks)
        marks.paths |= {snapshot_path(session, name.head) for name in head.names.values()}
        newest = (await self._heads.ids(session))[-keys.HEADS_KEPT :]
        marks.paths |= {head_path(session, name) for name in newest}
        for _, fields in await self._redis.xrange(keys.log(session)):
            message = REQUEST.validate_json(fields[b"body"])
            if isinstance(message, Init | Observe):
                marks.paths.add(blob_path(session, message.blob))

    async def _mark_segments(self, head: Head, home: str, marks: Marks) -> set[str]:
        """Add the segments under `home` that a World and its snapshots are made of; all sessions
        under which such segments lie.
        """
        manifests = [head.manifest]
        for name in head.names.values():
            try:
                manifests.append((await self._heads.named(head, name.name)).manifest)
            except SegmentMissing as error:
                self._report("snapshot lost", head.session, error.detail)
            except SegmentCorrupt as error:
                marks.is_certain = False
                self._report("snapshot can't be read", head.session, error.detail)
        placed = {(entry.home or head.session, entry.id) for one in manifests for entry in one}
        marks.paths |= {segment_path(home, name) for place, name in placed if place == home}
        return {place for place, _ in placed} - {head.session}

    async def _mark_forks(self, session: str, home: str, marks: Marks) -> None:
        """Add what the forks of `session`, and theirs, use of `home`; forget those that left
        nothing behind.
        """
        known = await self._known_forks(session)
        for fork, parents in reversed(known.items()):  # so that a chain is forgotten in one go
            try:
                head = await self._heads.current(fork)
            except (UnknownSession, SessionDeleted) as error:
                is_new = time.time() - max(parents.values()) < keys.CREATION_S
                marks.is_certain &= not (is_new and isinstance(error, UnknownSession))
                if not is_new and not await self._redis.exists(keys.forks(fork)):
                    for parent in parents:
                        await self._redis.zrem(keys.forks(parent), fork)
            except PARSE_ERRORS as error:
                marks.is_certain = False
                self._report("fork can't be read", fork, str(error))
            else:
                marks.users[fork] = await self._mark_segments(head, home, marks)

    async def _known_forks(self, session: str) -> dict[str, dict[str, float]]:
        """Forks of a session and forks of those, parents first -> who knows of it, since when.

        Without recursion, and each once: a World may have been forked and deleted a thousand times,
        and several sessions may know of a fork.
        """
        found: dict[str, dict[str, float]] = {}
        todo = [session]
        while todo:
            parent = todo.pop()
            for name, since_s in await self._redis.zrange(
                keys.forks(parent), 0, -1, withscores=True
            ):
                fork = name.decode()
                if fork not in found:
                    todo.append(fork)
                found.setdefault(fork, {})[parent] = since_s
        return found

    async def _register(self, users: dict[str, set[str]]) -> None:
        """Let each fork be known where its segments lie, as one in between is to be forgotten."""
        now = time.time()
        for fork, homes in users.items():
            for home in homes:
                await self._redis.zadd(keys.forks(home), {fork: now}, nx=True)

    def _report(self, what: str, session: str, reason: str) -> None:
        """Log it once: it is seen again with every look."""
        if (session, reason) not in self._reported:
            self._reported.add((session, reason))
            LOG.error(what, session=session, reason=reason)
