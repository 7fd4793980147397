"""Work for many sessions is done together, where it costs least, and each gets what is its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from worker.serving.beside import SMALL_S, Beside


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


async def test_small_work_is_done_at_once_and_large_work_uses_all_threads(
    pool: ThreadPoolExecutor,
) -> None:
    beside = Beside(pool, 2)

    def work(number: int, cost_s: float) -> tuple[int, threading.Thread]:
        began_s = time.thread_time()
        while time.thread_time() < began_s + cost_s:
            pass
        return number, threading.current_thread()

    async def all_of(cost_s: float) -> set[threading.Thread]:
        done = await beside.run([partial(work, number, cost_s) for number in range(7)])
        assert [number for number, _ in done] == list(range(7))
        return {thread for _, thread in done}

    here = threading.current_thread()
    first = await all_of(0.0)  # nobody knows yet how long it takes
    assert here not in first
    assert await all_of(0.0) == {here}
    await all_of(20 * SMALL_S)  # from here on it is known to be large
    large = await all_of(20 * SMALL_S)
    assert len(large) == 2 and here not in large


async def test_one_that_fails_costs_the_others_nothing(pool: ThreadPoolExecutor) -> None:
    beside = Beside(pool, 2)
    for _ in range(2):  # on a thread, then at once
        good, bad, other = await beside.run([lambda one=one: 6 // one for one in (2, 0, 3)])
        assert (good, other) == (3, 2)
        assert isinstance(bad, ZeroDivisionError)
        assert await beside.run([lambda: 1]) == [1]
    assert await beside.run([]) == []
