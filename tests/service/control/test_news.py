"""The owner of a session hears of each request as it is made, and of a live pose what it says."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from plane import leases_of, new_session

from service.control import keys
from service.control.news import Inbox, News
from service.control.plane import ControlPlane
from service.control.requests import Generate, LivePose
from service.control.sessions import IDENTITY

LONG_S = 30.0


@contextlib.asynccontextmanager
async def inbox(control: ControlPlane, worker: str) -> AsyncIterator[Inbox]:
    """That of a worker that listens."""
    one = Inbox(control.redis, worker)
    await one.open()
    assert await asyncio.wait_for(one.listen(), LONG_S) == [None]  # it has begun
    yield one
    await one.close()


async def hears(one: Inbox, count: int) -> list[News]:
    heard: list[News] = []
    async with asyncio.timeout(LONG_S):
        while len(heard) < count:
            heard += [news for news in await one.listen() if news is not None]
    return heard


def live(camera: int = 0, sequence: int = 0) -> LivePose:
    return LivePose(pose=IDENTITY, camera=camera, sequence=sequence)


async def test_a_live_pose_is_heard_as_it_lies_in_the_log(control: ControlPlane) -> None:
    session, leases = await new_session(control), leases_of(control, "w1")
    assert await leases.acquire(session.id)
    async with inbox(control, "w1") as one:
        for sequence in range(3):
            await control.requests.append_live(session.id, live(sequence % 2, sequence))
        first, second, third = await hears(one, 3)
    log = (await leases.load(session.id)).entries
    assert [second.entry, third.entry] == log[1:]  # behind the first image
    assert first.entry is not None
    assert [one.replaced for one in (first, second, third)] == ["", "", first.entry.entry]
    assert [one.asked for one in (first, second, third)] == [1, 2, 3]
    assert (await leases.load(session.id)).asked == 3
    assert await control.redis.xlen(keys.inbox("w1")) == 0  # told once is enough


async def test_of_any_other_request_only_that_there_is_one(control: ControlPlane) -> None:
    session = await new_session(control)
    assert await leases_of(control, "w1").acquire(session.id)
    async with inbox(control, "w1") as one:
        await control.requests.append(session.id, Generate(poses=[IDENTITY]))
        assert await hears(one, 1) == [News(session.id, 1)]


async def test_who_does_not_listen_finds_it_in_the_inbox(control: ControlPlane) -> None:
    session = await new_session(control)
    assert await leases_of(control, "w1").acquire(session.id)
    async with inbox(control, "w2"):
        await control.requests.append_live(session.id, live())
    assert await control.redis.xlen(keys.inbox("w1")) == 1


async def test_a_new_connection_says_that_something_may_be_lost(control: ControlPlane) -> None:
    async with inbox(control, "w1") as one:
        heard = asyncio.create_task(one.listen())
        await asyncio.sleep(0.05)
        assert await control.redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub") == 1
        assert await asyncio.wait_for(heard, LONG_S) == [None]
        session = await new_session(control)
        assert await leases_of(control, "w1").acquire(session.id)
        await control.requests.append_live(session.id, live())
        assert [news.session for news in await hears(one, 1)] == [session.id]


async def test_many_at_once_are_heard_in_order(control: ControlPlane) -> None:
    session = await new_session(control)
    assert await leases_of(control, "w1").acquire(session.id)
    async with inbox(control, "w1") as one:
        poses = [live(number % 3, number) for number in range(200)]
        await asyncio.gather(*(control.requests.append_live(session.id, one) for one in poses))
        assert [news.asked for news in await hears(one, 200)] == list(range(1, 201))
