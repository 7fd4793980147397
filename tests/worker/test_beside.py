"""Work for many sessions is done together, and each gets what is its own."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from worker.beside import WORTH_A_THREAD_S, Beside


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


async def test_small_work_shares_a_thread_and_large_work_uses_all(pool: ThreadPoolExecutor) -> None:
    beside = Beside(pool, 2)

    def work(number: int, cost_s: float) -> tuple[int, str]:
        began_s = time.thread_time()
        while time.thread_time() < began_s + cost_s:
            pass
        return number, threading.current_thread().name

    async def all_of(cost_s: float) -> set[str]:
        works = (beside.run(lambda one=number: work(one, cost_s)) for number in range(7))
        done = await asyncio.gather(*works)
        assert [number for number, _ in done] == list(range(7))
        return {name for _, name in done}

    assert len(await all_of(0.0)) == 1
    await all_of(20 * WORTH_A_THREAD_S)  # from here on it is known to be large
    assert len(await all_of(20 * WORTH_A_THREAD_S)) == 2


async def test_one_that_fails_costs_the_others_nothing(pool: ThreadPoolExecutor) -> None:
    beside = Beside(pool, 2)
    works = (beside.run(lambda one=number: 6 // one) for number in (2, 0, 3))
    good, bad, other = await asyncio.gather(*works, return_exceptions=True)
    assert (good, other) == (3, 2)
    assert isinstance(bad, ZeroDivisionError)
