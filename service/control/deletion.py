"""A session ends: what Redis holds of it at once and under conditions, what crosses sessions after
that. Its objects are left to the collection (service/store/collection.py).
"""

from __future__ import annotations

import secrets
import time

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from service.control import keys, scripts
from service.control.wake import QUEUE

LOG = structlog.get_logger()


def deleted_path(session: str) -> str:
    """An object that says, should Redis lose its data, that this session was deleted."""
    return f"sessions/{session}/deleted"


async def bury(redis: Redis, session: str, version: int | str, expired_by_s: float | str) -> str:
    """Delete under conditions; returns ok, unknown, deleted, version or alive.

    What crosses sessions may fail after that: the session is gone all the same, and the sweeper
    does the rest when it would have expired.
    """
    names = [
        keys.record, keys.lease, keys.log, keys.manifest, keys.frames, keys.requests,
        keys.order, keys.cancels, keys.names, keys.shares, keys.video, keys.garbage,
        keys.reservation, keys.guests_order,
    ]  # fmt: skip
    answer = await scripts.run(
        redis,
        "delete",
        [name(session) for name in names],
        [version, expired_by_s, keys.TOMBSTONE_S, secrets.token_hex(8)],
    )
    outcome: str = answer[0].decode()
    try:
        if outcome in ("ok", "deleted"):
            await redis.zrem(keys.index(answer[1].decode()), session)
        if outcome in ("ok", "deleted", "unknown"):
            await _unlist(redis, session)
    except RedisError as error:
        if outcome != "ok":
            raise
        LOG.warning("deletion not finished", session=session, error=str(error))
    return outcome


async def entomb(redis: Redis, session: str, after_s: float = 0.0) -> None:
    """Let the sweeper look for what lies in the store of a session that is gone."""
    await scripts.run(redis, "grave", [keys.GRAVES], [session, time.time() + after_s])


async def _unlist(redis: Redis, session: str) -> None:
    """Let the objects of a session that is gone go, too, if nobody did; it waits no longer."""
    if await redis.zscore(keys.EXPIRY, session) is None:
        return
    await entomb(redis, session)
    await scripts.run(redis, "unwake", QUEUE, [keys.WAKE_GROUP, session])
    await redis.zrem(keys.EXPIRY, session)
    await redis.zrem(keys.COLLECT, session)
