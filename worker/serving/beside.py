"""Encoding and packing of all sessions of a step: on threads if it is worth it, else at once.

Waking a thread costs as much as encoding a small frame, and taking turns with it at the interpreter
costs far more, so small work is done where it is asked for. A large frame is encoded outside the
interpreter: as soon as it is worth waking another thread, the work is shared among them.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any

from worker.serving.trouble import attempt

SMALL_S = 0.001  # CPU time of one piece
WORTH_A_THREAD_S = 0.002
Work = Callable[[], Any]


class Beside:
    def __init__(self, pool: Executor, num_threads: int) -> None:
        self._pool, self._num_threads = pool, num_threads
        self._each_s = math.inf  # CPU time that one piece of work took the last time

    async def run(self, works: Sequence[Work]) -> list[Any]:
        """What each returns, or its error. They may be done twice, so this must do no harm."""
        if not works:
            return []
        parts = await self._parts(works)
        if any(isinstance(part, Exception) for part in parts):  # find out whose fault it is
            return [await self._try(work) for work in works]
        self._each_s = sum(spent_s for _, spent_s in parts) / len(works)
        results: list[Any] = [None] * len(works)
        for first, (part, _) in enumerate(parts):
            results[first :: len(parts)] = part
        return results

    async def _parts(self, works: Sequence[Work]) -> list[Any]:
        """In equal shares, each with its results and CPU time, or an error."""
        if self._each_s < SMALL_S:
            return [await attempt(_here(works))]
        worth = min(float(self._num_threads), len(works) * self._each_s / WORTH_A_THREAD_S)
        shares = min(max(1, math.ceil(worth)), len(works))
        return await asyncio.gather(
            *(self._try(_in_order, works[first::shares]) for first in range(shares))
        )

    async def _try(self, work: Callable[..., Any], *args: object) -> Any:
        return await attempt(asyncio.get_running_loop().run_in_executor(self._pool, work, *args))


async def _here(works: Sequence[Work]) -> tuple[list[Any], float]:
    return _in_order(works)


def _in_order(works: Sequence[Work]) -> tuple[list[Any], float]:
    """The results, and what they cost this thread: not how long it waited for others."""
    started_s = time.thread_time()
    return [work() for work in works], time.thread_time() - started_s
