"""Work off the event loop, for many sessions in one go.

Waking a thread costs as much as encoding a small frame, and taking turns with it at the interpreter
costs more, so what all sessions of a step have to do is handed over together, or, if it is next to
nothing, done at once. A large frame costs far more: as soon as it is worth waking another thread,
the work is shared among them.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any, TypeVar

from service.batches import Batches
from worker.trouble import attempt

WORTH_A_THREAD_S = 0.002
AT_ONCE_S = 0.004  # for so long the event loop may be busy with it
T = TypeVar("T")
Work = Callable[[], Any]


class Beside:
    def __init__(self, pool: Executor, num_threads: int) -> None:
        self._pool, self._num_threads = pool, num_threads
        self._each_s = 0.0  # CPU time that one piece of work took in the last batch
        self._batches: Batches[Work] = Batches(self._all)

    async def run(self, work: Callable[[], T]) -> T:
        """What it returns or raises. It may be done twice, so it must change nothing."""
        done: T = await self._batches.do(work)
        return done

    async def _all(self, works: Sequence[Work]) -> list[Any]:
        """The result of each, or its error."""
        if 0.0 < self._each_s * len(works) < AT_ONCE_S:
            return await self._here(works)
        worth = math.ceil(len(works) * self._each_s / WORTH_A_THREAD_S)
        shares = min(max(1, worth), self._num_threads, len(works))
        parts = await asyncio.gather(
            *(self._try(_in_order, works[first::shares]) for first in range(shares))
        )
        if any(isinstance(part, Exception) for part in parts):  # find out whose fault it is
            return [await self._try(work) for work in works]
        self._each_s = sum(spent_s for _, spent_s in parts) / len(works)
        results: list[Any] = [None] * len(works)
        for first, (part, _) in enumerate(parts):
            results[first::shares] = part
        return results

    async def _here(self, works: Sequence[Work]) -> list[Any]:
        """On the event loop; how long it took decides where the next is done."""
        started_s = time.thread_time()
        results = [await attempt(_done(work)) for work in works]
        self._each_s = (time.thread_time() - started_s) / len(works)
        return results

    async def _try(self, work: Callable[..., Any], *args: object) -> Any:
        return await attempt(asyncio.get_running_loop().run_in_executor(self._pool, work, *args))


async def _done(work: Work) -> Any:
    return work()


def _in_order(works: Sequence[Work]) -> tuple[list[Any], float]:
    """The results, and what they cost this thread: not how long it waited for others."""
    started_s = time.thread_time()
    return [work() for work in works], time.thread_time() - started_s
