"""What many tasks do at once goes in few batches, and everybody gets an own answer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
import structlog
from redis.exceptions import ConnectionError, ResponseError

from service.control.batches import Batches, Pipelined
from service.control.plane import ControlPlane


async def test_what_arrives_while_a_batch_is_on_its_way_goes_in_the_next() -> None:
    seen: list[list[int]] = []

    async def work(items: Sequence[int]) -> list[int]:
        seen.append(list(items))
        await asyncio.sleep(0.01)
        return [10 * item for item in items]

    batches = Batches(work)
    first = asyncio.create_task(batches.do(1))
    await asyncio.sleep(0.005)
    assert await asyncio.gather(batches.do(2), batches.do(3), first) == [20, 30, 10]
    assert seen == [[1], [2, 3]]
    assert await batches.do(4) == 40


async def test_what_is_done_for_all_is_logged_as_nobodys() -> None:
    async def work(items: Sequence[int]) -> list[object]:
        return [structlog.contextvars.get_contextvars() for _ in items]

    with structlog.contextvars.bound_contextvars(request_id="r1", owner="ann"):
        assert await Batches(work).do(1) == {}


@pytest.mark.parametrize("error", [ConnectionError("gone"), ValueError("a defect")])
async def test_a_batch_that_fails_fails_all_of_its_callers_and_no_other(error: Exception) -> None:
    down, entered = True, asyncio.Event()

    async def work(items: Sequence[int]) -> Sequence[int]:
        if not down:
            return items
        entered.set()
        await asyncio.sleep(0.01)
        raise error

    batches = Batches(work)
    both = asyncio.gather(batches.do(1), batches.do(2), return_exceptions=True)
    await entered.wait()
    late = asyncio.create_task(batches.do(3))  # while that one is on its way
    await asyncio.sleep(0)
    assert await both == [error, error]
    down = False
    (answer,) = await asyncio.gather(asyncio.wait_for(late, 60), return_exceptions=True)
    assert answer in (3, error)
    assert await batches.do(4) == 4


async def test_a_caller_that_leaves_takes_no_other_with_it() -> None:
    entered, leave = asyncio.Event(), asyncio.Event()

    async def work(items: Sequence[int]) -> Sequence[int]:
        entered.set()
        await leave.wait()
        return items

    batches = Batches(work)
    stays, leaves = (asyncio.create_task(batches.do(number)) for number in (1, 2))
    await entered.wait()
    leaves.cancel()
    leave.set()
    assert await stays == 1
    with pytest.raises(asyncio.CancelledError):
        await leaves


async def test_an_end_in_the_middle_leaves_nobody_waiting() -> None:
    entered = asyncio.Event()

    async def work(items: Sequence[int]) -> Sequence[int]:
        entered.set()
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(Batches(work).do(1), timeout=60)


async def test_each_command_of_a_pipeline_has_its_own_answer_or_error(
    control: ControlPlane,
) -> None:
    pipelined = Pipelined(control.redis)
    answers = await asyncio.gather(
        pipelined.execute_command("SET", "mirage:test", "1"),
        pipelined.execute_command("LPUSH", "mirage:test", "2"),
        pipelined.execute_command("INCR", "mirage:test"),
        return_exceptions=True,
    )
    assert isinstance(answers[1], ResponseError)
    assert answers[2] == 2


async def test_a_connection_is_kept_until_it_is_lost(control: ControlPlane) -> None:
    pipelined = Pipelined(control.redis)

    async def connection() -> int:
        return int(await pipelined.execute_command("CLIENT", "ID"))

    first = await connection()
    assert await connection() == first
    both = await asyncio.gather(*(pipelined.execute([("CLIENT", "ID")]) for _ in range(2)))
    assert first in {one for (one,) in both}  # the other had to take one from the pool
    await control.redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    assert await connection() not in {one for (one,) in both}


async def test_no_connection_is_lost_when_batches_overlap(control: ControlPlane) -> None:
    pipelined, pool = Pipelined(control.redis), control.redis.connection_pool
    await control.redis.ping()
    before = len(pool._in_use_connections)
    for _ in range(5):
        await asyncio.gather(*(pipelined.execute([("CLIENT", "ID")]) for _ in range(12)))
    assert len(pool._in_use_connections) - before <= 1  # the one that is kept
