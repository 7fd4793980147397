"""What a worker waits out: a Redis or a store that does not answer. Nothing is wrong with any
request then, so nothing fails; the worker says what it waits for and tries again, ever more slowly.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import TypeVar

import structlog
from redis.exceptions import RedisError

from service.errors import StoreDown
from service.store.objects import reason_of
from worker.serving.metrics import Metrics

LOG = structlog.get_logger()
TRANSIENT = (RedisError, StoreDown, OSError)
FIRST_WAIT_S, LONGEST_WAIT_S = 0.2, 5.0
T = TypeVar("T")


async def attempt(work: Awaitable[T]) -> T | Exception:
    """The job boundary: whatever goes wrong inside is an answer, and costs only that job."""
    try:
        return await work
    except Exception as error:  # noqa: BLE001 the job boundary
        return error


class Trouble:
    def __init__(self, worker_id: str, metrics: Metrics) -> None:
        self._worker_id, self._metrics = worker_id, metrics
        self._wait_s, self._until_s = FIRST_WAIT_S, 0.0
        self.problem = ""  # what is being waited out, for whoever asks how we are

    def note(self, error: Exception) -> None:
        """Something failed that will pass; errors of one moment count once."""
        self.problem = _told(error)
        self._metrics.errors.labels("store" if isinstance(error, StoreDown) else "redis").inc()
        now_s = time.monotonic()
        if now_s < self._until_s:
            return
        LOG.warning("waiting", worker=self._worker_id, error=repr(error), wait_s=self._wait_s)
        self._until_s = now_s + self._wait_s
        self._wait_s = min(2 * self._wait_s, LONGEST_WAIT_S)

    async def wait(self) -> bool:
        """Wait until it is time to try again; whether there was anything to wait for."""
        left_s = self._until_s - time.monotonic()
        if left_s > 0:
            await asyncio.sleep(left_s)
        return left_s > 0

    def over(self) -> None:
        """Something worked that would not work if it still lasted."""
        self.problem, self._wait_s = "", FIRST_WAIT_S


def _told(error: Exception) -> str:
    """What /readyz may say to anybody: not where Redis or the store is."""
    if isinstance(error, RedisError):
        return f"Redis does not answer ({type(error).__name__})"
    return error.detail if isinstance(error, StoreDown) else reason_of(error)
