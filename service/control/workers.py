"""Which workers are alive: each writes a small record with a short time to live, thrice a lease."""

from __future__ import annotations

import time
from typing import Any

from pydantic import BaseModel, ConfigDict
from redis.asyncio import Redis

from service.control import keys


class WorkerRecord(BaseModel):
    """One worker as it last reported."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    weights: str  # name@checksum
    backbone: str
    device: str
    memories: list[str]
    capacity: int  # sessions in one step
    num_sessions: int = 0  # owned
    num_bytes: int = 0  # of the memories it holds
    problem: str = ""  # what it is waiting out: no store, no Redis
    host: str = ""
    pid: int = 0
    metrics_port: int = 0  # where Prometheus finds it; 0: nowhere
    started_s: float
    seen_s: float = 0.0


class Workers:
    def __init__(self, redis: Redis, lease_s: float) -> None:
        self._redis: Any = redis  # redis-py's types mix its sync and async answers
        self._ttl_ms = int(1000 * lease_s)

    async def beat(self, record: WorkerRecord) -> None:
        """Report; due at least three times per lease."""
        record = record.model_copy(update={"seen_s": time.time()})
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.set(keys.worker(record.id), record.model_dump_json(), px=self._ttl_ms)
            pipe.zadd(keys.WORKERS, {record.id: record.seen_s})
            pipe.zremrangebyscore(keys.WORKERS, "-inf", record.seen_s - keys.TOMBSTONE_S)
            await pipe.execute()

    async def leave(self, worker_id: str) -> None:
        """Report an orderly end."""
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.delete(keys.worker(worker_id))
            pipe.delete(keys.inbox(worker_id))
            pipe.zrem(keys.WORKERS, worker_id)
            await pipe.execute()

    async def alive(self) -> list[WorkerRecord]:
        """Workers that reported within a lease, in order of id."""
        ids = await self._redis.zrange(keys.WORKERS, 0, -1)
        async with self._redis.pipeline(transaction=False) as pipe:
            for worker in ids:
                pipe.get(keys.worker(worker.decode()))
            records = await pipe.execute()
        found = [WorkerRecord.model_validate_json(one) for one in records if one]
        return sorted(found, key=lambda one: one.id)
