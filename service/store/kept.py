"""Small records that outlive Redis: API keys and share links, which nobody but us has a copy of.

Redis answers every question about them; the segment store holds a copy of each, which a rebuild
brings back. A record is stored before it is shown in Redis and vanishes from Redis before it
vanishes from the store, so what was revoked opens nothing from that moment on.
"""

from __future__ import annotations

import time
from typing import Any

import structlog
from pydantic import BaseModel, ConfigDict, ValidationError
from redis.asyncio import Redis

from service.control import keys
from service.errors import SegmentMissing, StoreDown
from service.store.objects import ObjectStore

LOG = structlog.get_logger()
FOLDER = "kept"


class Record(BaseModel):
    """What Redis shall hold: a value, and its member of a sorted set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str  # of the object
    key: str
    value: str
    index: str
    member: str
    score: float
    expires_s: float | None = None


class Kept:
    def __init__(self, redis: Redis, objects: ObjectStore) -> None:
        self._redis: Any = redis  # redis-py's types mix its sync and async answers
        self._objects = objects

    async def put(self, record: Record) -> None:
        """Raises StoreDown; then there is none."""
        await self._objects.put(_path(record.name), record.model_dump_json().encode())
        await self._show(record)

    async def forget(self, name: str, key: str, index: str, member: str) -> bool:
        """At once and for good; whether Redis knew it. Raises StoreDown: gone, but not for good."""
        known = await self._redis.delete(key)
        try:
            await self._objects.delete([_path(name)])
        except StoreDown as error:
            raise StoreDown(
                f"{member} is revoked, but a rebuild would bring it back; revoke it again once the "
                f"store answers: {error.detail}"
            ) from error
        known += await self._redis.zrem(index, member)  # last, so that it can be said again
        await self._redis.zrem(keys.KEPT, name)
        return bool(known)

    async def restore(self) -> int:
        """Show Redis everything again; how many records that were."""
        found = await self._objects.below(FOLDER)
        for one in found:
            try:
                record = Record.model_validate_json(await self._objects.read(one.path))
            except (ValidationError, SegmentMissing) as error:
                LOG.error("record lost", path=one.path, reason=str(error))
            else:
                await self._show(record)
        return len(found)

    async def expire(self, now_s: float, most: int) -> None:
        """Remove what has expired from the store; Redis has forgotten it by itself."""
        names = await self._redis.zrangebyscore(keys.KEPT, "-inf", now_s, start=0, num=most)
        for name in names:
            await self._objects.delete([_path(name.decode())])
            await self._redis.zrem(keys.KEPT, name)

    async def _show(self, record: Record) -> None:
        if record.expires_s is not None:
            await self._redis.zadd(keys.KEPT, {record.name: record.expires_s})
            if record.expires_s <= time.time():
                return
        ends_ms = None if record.expires_s is None else int(1000 * record.expires_s)
        await self._redis.set(record.key, record.value, pxat=ends_ms)
        await self._redis.zadd(record.index, {record.member: record.score})
        if record.expires_s is not None:  # the set lives as long as its longest member
            ends_s = int(record.expires_s) + 1
            await self._redis.expireat(record.index, ends_s, gt=True)
            await self._redis.expireat(record.index, ends_s, nx=True)


def _path(name: str) -> str:
    return f"{FOLDER}/{name}.json"
