"""Work that blocks, done where it costs least: at once while it is brief, else on a thread.

Waking a thread and taking turns with it at the interpreter costs more than a small file or a small
step does. How long the work takes is measured, not guessed: the shorter ones of the last few times
count, as the longer ones only say that somebody else had the processor. Trade-off: once in a while
what was brief is not (a disk that stalls), and the event loop waits for it.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

T = TypeVar("T")
LAST, COUNTED = 16, 4  # of the last 16 times, the fourth shortest


class Brief:
    def __init__(self, limit_s: float, pool: Executor | None = None) -> None:
        """Up to `limit_s` a call is brief; `pool`: the threads for others (None: any)."""
        self._limit_s, self._pool = limit_s, pool
        self._last_s: deque[float] = deque(maxlen=LAST)

    @property
    def is_brief(self) -> bool:
        return len(self._last_s) == LAST and sorted(self._last_s)[COUNTED - 1] < self._limit_s

    async def run(self, work: Callable[[], T]) -> T:
        """What it returns or raises."""
        if self.is_brief:
            return self._timed(work)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, self._timed, work)

    def _timed(self, work: Callable[[], T]) -> T:
        began_s = time.perf_counter()
        done = work()
        self._last_s.append(time.perf_counter() - began_s)
        return done
