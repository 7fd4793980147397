"""Repairs what crosses sessions: expires idle ones, empties graves, wakes what has no owner.

Every worker sweeps; each repair is idempotent, so any number of sweepers agree.
Sessions known to have work are looked at when their lease could end; all others in turn, now and
then, which finds even what a gateway died before announcing.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.exceptions import ConnectionError, OutOfMemoryError, RedisError
from redis.exceptions import TimeoutError as RedisTimeout

from service.control import keys, scripts
from service.control.deletion import bury
from service.control.requests import RequestLog
from service.errors import PROBLEMS, AmbiguousWorld, ConfigurationError, Unavailable
from service.store.collection import Collection
from service.store.kept import Kept
from service.store.rebuild import Rebuild

LOG = structlog.get_logger()
SCAN_EVERY = 10  # sweeps
AGAIN_S = 60.0  # how soon a session is looked at again that can't be repaired
UNREACHABLE = (ConnectionError, RedisTimeout, OSError)


class Sweeper:
    def __init__(
        self,
        redis: Redis,
        requests: RequestLog,
        collection: Collection,
        rebuild: Rebuild,
        kept: Kept,
        lease_s: float,
    ) -> None:
        self._redis: Any = redis  # redis-py's types mix its sync and async answers
        self._requests, self._collection, self._rebuild = requests, collection, rebuild
        self._kept, self._lease_s = kept, lease_s
        self._rounds = itertools.count()
        self._broken: set[tuple[str, str]] = set()  # what was due, session: logged once
        self._scanned = 0  # cursor of the slow scan over all sessions
        self.num_expired, self.num_removed = 0, 0  # sessions, objects; by this process

    async def forever(self) -> None:
        """Sweep until cancelled; an unreachable Redis or store is waited out."""
        while True:
            try:
                await self.sweep()
            except (RedisError, Unavailable, ConfigurationError, OSError) as error:
                LOG.warning("sweep failed", error=str(error))
            except Exception:  # a defect, but nobody else repairs anything
                LOG.exception("sweep failed")
            await asyncio.sleep(min(keys.SWEEP_PERIOD_S, self._lease_s / 4))

    async def sweep(self) -> None:
        """One round of every repair."""
        await self._rebuild.ensure()
        await self.expire()
        await self.wake_orphans()
        await self.empty_graves()
        await self.collect()
        if next(self._rounds) % SCAN_EVERY == 0:
            await self.scan()
            await self.forget_workers()
        await self._kept.expire(time.time(), keys.SWEEP_BATCH)

    async def expire(self) -> None:
        """Bury sessions that are past their expiry."""
        now = time.time()
        await self._each(keys.EXPIRY, await self._due(keys.EXPIRY, now), self._expire)

    async def _expire(self, session: str) -> None:
        error = await self._redis.hget(keys.record(session), "error")
        if error and PROBLEMS[AmbiguousWorld].type.encode() in error:  # an operator has to decide
            await self._redis.zadd(keys.EXPIRY, {session: time.time() + AGAIN_S}, xx=True)
            return
        said = await bury(self._redis, session, "", time.time())
        self.num_expired += said == "ok"
        if said == "alive":
            expires_s = await self._redis.hget(keys.record(session), "expires_s")
            if expires_s is not None:
                await self._redis.zadd(keys.EXPIRY, {session: float(expires_s)}, xx=True)

    async def empty_graves(self) -> None:
        """Remove the objects of deleted sessions."""
        await self._each(keys.GRAVES, await self._due(keys.GRAVES, time.time()), self._empty)

    async def _empty(self, session: str) -> None:
        num_objects = await self._collection.bury(session)
        self.num_removed += num_objects
        if num_objects:  # a grave whose forks live is looked at again and again
            LOG.info("session removed", session=session, num_objects=num_objects)

    async def collect(self) -> None:
        """Look through the objects of a few sessions whose turn it is."""
        due = await self._due(keys.COLLECT, time.time())
        await self._each(keys.COLLECT, due[: keys.COLLECT_BATCH], self._collect)

    async def _collect(self, session: str) -> None:
        lock = keys.collecting(session)
        if await self._redis.set(lock, "", nx=True, ex=keys.CREATION_S):
            num_objects = await self._collection.collect(session)
            await self._redis.delete(lock)
            self.num_removed += num_objects
            if num_objects:
                LOG.info("objects collected", session=session, num_objects=num_objects)

    async def wake_orphans(self) -> None:
        """Wake the sessions that have work and no owner."""
        await self._each(keys.BUSY, await self._due(keys.BUSY, time.time()), self._look)

    async def _each(
        self, due: str, sessions: Sequence[str], repair: Callable[[str], Awaitable[None]]
    ) -> None:
        """Repair these; what is wrong with one is logged once and costs only that one, which is
        due again later, so that others get their turn.
        """
        for session in sessions:
            try:
                await repair(session)
            except UNREACHABLE:
                raise
            except OutOfMemoryError as error:  # the next ones may make room
                LOG.warning("redis is full", session=session, due=due, error=str(error))
            except Exception as error:
                await self._redis.zadd(due, {session: time.time() + AGAIN_S}, xx=True)
                if isinstance(error, Unavailable):  # the store: perhaps for all
                    raise
                if (due, session) not in self._broken:
                    self._broken.add((due, session))
                    LOG.exception("session can't be repaired", session=session, due=due)
            else:
                self._broken.discard((due, session))

    async def scan(self) -> None:
        """Look at the next few of all sessions."""
        self._scanned, some = await self._redis.zscan(
            keys.EXPIRY, self._scanned, count=keys.SWEEP_BATCH
        )
        await self._each(keys.BUSY, [name.decode() for name, _ in some], self._look)

    async def forget_workers(self) -> None:
        """Those that are gone, as the wake queue knows them."""
        await scripts.run(
            self._redis, "forget", [keys.WAKE], [keys.WAKE_GROUP, 1000 * keys.INBOX_S]
        )

    async def _look(self, session: str) -> None:
        """A note not due yet stays: its writer counts on it (service/control/appends.py)."""
        seen_at = await self._redis.zscore(keys.BUSY, session)
        names = (keys.record, keys.lease, keys.log)
        answer = await scripts.run(self._redis, "inspect", [name(session) for name in names], [])
        if answer[0] == b"orphan":
            await self._requests.wake(session)
        elif answer[0] == b"owned" and seen_at is not None:
            at_expiry = {session: time.time() + answer[1] / 1000}
            await self._redis.zadd(keys.BUSY, at_expiry, xx=True, gt=True)
        elif seen_at is not None and seen_at <= time.time():
            await self._forget(session, seen_at)

    async def _forget(self, session: str, seen_at: float) -> None:
        """Stop looking, unless somebody announced work meanwhile."""
        if await self._redis.zscore(keys.BUSY, session) == seen_at:
            await self._redis.zrem(keys.BUSY, session)

    async def _due(self, key: str, now: float) -> list[str]:
        found = await self._redis.zrangebyscore(key, "-inf", now, start=0, num=keys.SWEEP_BATCH)
        return [name.decode() for name in found]
