"""Frames are pushed to watchers as they are committed; what is not pushed is read all the same."""

from __future__ import annotations

import asyncio
import time

import pytest
import structlog
from plane import leases_of, new_session, step

from service.control import keys
from service.control.feed import KEPT
from service.control.frames import Frame
from service.control.plane import ControlPlane
from service.control.pushes import Pushes
from service.control.requests import Generate
from service.control.sessions import IDENTITY, Session
from service.errors import SessionDeleted

QUICK_S, LONG_S = 20.0, 60.0  # what came in a third of the longest wait was pushed


async def commit(control: ControlPlane, session: Session, lease: str, count: int = 1) -> None:
    """One more chunk, as an owner would."""
    leases = leases_of(control)
    await control.requests.append(session.id, Generate(poses=[IDENTITY] * count))
    owned = await leases.load(session.id)
    first = owned.session.next_frame
    await leases.commit(session.id, lease, step(owned, first, count))


async def opened(control: ControlPlane) -> tuple[Session, str]:
    session = await new_session(control)
    lease = await leases_of(control).acquire(session.id)
    assert lease
    return session, lease


def numbers(frames: list[Frame]) -> list[int]:
    return [one.frame for one in frames]


async def test_a_frame_comes_as_soon_as_it_is_committed(control: ControlPlane) -> None:
    session, lease = await opened(control)
    async with control.feed.watch(session.id) as watch:
        assert await watch.read(-1) == []
        for number in range(5):
            reading = asyncio.create_task(watch.read(number - 1, wait_s=LONG_S))
            await asyncio.sleep(0.01)
            started_s = time.perf_counter()
            await commit(control, session, lease)
            (found,) = await reading
            assert time.perf_counter() - started_s < QUICK_S
            assert found == await control.frames.get(session.id, number)


async def test_what_was_there_before_is_read_first(control: ControlPlane) -> None:
    session, lease = await opened(control)
    await commit(control, session, lease, count=5)
    async with control.feed.watch(session.id) as watch:
        assert numbers(await watch.read(1, limit=2)) == [2, 3]
        assert numbers(await watch.read(3, limit=2)) == [4]
        await commit(control, session, lease)
        assert numbers(await watch.read(4, wait_s=LONG_S)) == [5]


async def test_a_reader_that_was_slow_misses_nothing(control: ControlPlane) -> None:
    session, lease = await opened(control)
    async with control.feed.watch(session.id) as watch:
        assert await watch.read(-1) == []
        for _ in range(2):  # more than are kept for it, and than the stream of these tests holds
            await commit(control, session, lease, count=KEPT)
        seen: list[int] = []
        while len(seen) < 8:
            after = seen[-1] if seen else 2 * KEPT - 9
            seen += numbers(await watch.read(after, wait_s=1.0, limit=3))
        assert seen == list(range(2 * KEPT - 8, 2 * KEPT))


@pytest.mark.parametrize("data", [b"{", b"no line end", b'{"frame": 0}\n', b"\xff\n\xff"])
async def test_a_push_that_cannot_be_read_costs_nobody_the_next(
    control: ControlPlane, data: bytes
) -> None:
    session, lease = await opened(control)
    async with control.feed.watch(session.id) as watch:
        assert await watch.read(-1) == []
        await control.redis.publish(keys.frames(session.id), data)
        assert await watch.read(-1, wait_s=LONG_S) == []
        started_s = time.perf_counter()
        await commit(control, session, lease)
        assert numbers(await watch.read(-1, wait_s=LONG_S)) == [0]
        assert time.perf_counter() - started_s < QUICK_S


async def test_lost_pushes_show_as_a_gap_and_are_read(control: ControlPlane) -> None:
    session, lease = await opened(control)
    async with control.feed.watch(session.id) as watch:
        await commit(control, session, lease)
        assert numbers(await watch.read(-1, wait_s=LONG_S)) == [0]
        await control.redis.client_kill_filter(_type="pubsub")
        for _ in range(3):
            await commit(control, session, lease)
        seen: list[int] = []
        async with asyncio.timeout(LONG_S):
            while len(seen) < 3:
                seen += numbers(await watch.read(len(seen), wait_s=0.3))
        assert seen == [1, 2, 3]
        async with asyncio.timeout(LONG_S):  # until the connection is back: pushed again
            while not await control.redis.pubsub_channels():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await watch.read(3)
        reading = asyncio.create_task(watch.read(3, wait_s=LONG_S))
        await asyncio.sleep(0.01)
        await commit(control, session, lease)
        assert numbers(await asyncio.wait_for(reading, QUICK_S)) == [4]


async def test_a_deletion_is_told_at_once(control: ControlPlane) -> None:
    session, _ = await opened(control)
    async with control.feed.watch(session.id) as watch:
        await watch.read(-1)
        reading = asyncio.create_task(watch.read(-1, wait_s=LONG_S))
        await asyncio.sleep(0.01)
        await control.sessions.delete(session.id)
        with pytest.raises(SessionDeleted):
            await asyncio.wait_for(reading, QUICK_S)


async def test_watches_come_and_go(control: ControlPlane) -> None:
    """Two watchers of one session, one leaves; nothing is left when both have."""
    session, lease = await opened(control)
    async with control.feed.watch(session.id) as stays:
        async with control.feed.watch(session.id):
            pass
        await stays.read(-1)
        reading = asyncio.create_task(stays.read(-1, wait_s=LONG_S))
        await asyncio.sleep(0.01)
        await commit(control, session, lease)
        assert numbers(await asyncio.wait_for(reading, QUICK_S)) == [0]
    async with asyncio.timeout(LONG_S):  # the connection tells the server a moment later
        while await control.redis.pubsub_channels():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_short_wait_behind_a_long_one_is_short(control: ControlPlane) -> None:
    session, lease = await opened(control)
    async with control.feed.watch(session.id) as watch:
        assert await watch.read(-1) == []
        reading = asyncio.create_task(watch.read(-1, wait_s=LONG_S))
        await asyncio.sleep(0.01)
        await commit(control, session, lease)
        assert numbers(await reading) == [0]
        started_s = time.perf_counter()
        assert await watch.read(0, wait_s=0.05) == []
        assert 0.04 < time.perf_counter() - started_s < QUICK_S


async def test_what_a_feed_logs_names_no_request(
    control: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One task listens for all: it would name the first request, its key and its owner for ever."""
    bound = asyncio.get_running_loop().create_future()

    async def listened(_: Pushes) -> list[object]:
        bound.set_result(structlog.contextvars.get_contextvars())
        return await asyncio.Future()

    monkeypatch.setattr(Pushes, "next", listened)
    with structlog.contextvars.bound_contextvars(request_id="r1", owner="ann"):
        async with control.feed.watch("s" + "0" * 23):
            assert await bound == {}
