"""Whoever owns a session hears of each request, however the owner changed meanwhile."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from service.control import keys
from service.control.appends import NOTED_PART
from service.control.leases import Leases
from service.control.plane import ControlPlane
from service.control.requests import LivePose
from service.control.sessions import IDENTITY, Intrinsics, NewSession
from service.errors import SessionDeleted, UnknownSession
from service.settings import Settings
from service.store.segments import Upload

LENS = Intrinsics(fx=50, fy=50, cx=32, cy=16, width=64, height=32)


async def told(control: ControlPlane, worker: str) -> list[str]:
    """The sessions in a worker's inbox, oldest news first."""
    news = await control.redis.xrange(keys.inbox(worker))
    return [name for _, fields in news for name in fields[b"sessions"].decode().split()]


async def opened(control: ControlPlane) -> str:
    upload = Upload(np.zeros((32, 64, 3), np.uint8))
    return (await control.sessions.create(NewSession(intrinsics=LENS), upload)).id


async def walk(control: ControlPlane, session: str) -> None:
    await control.requests.append_live(session, LivePose(pose=IDENTITY))


async def test_the_owner_is_told_and_so_is_the_next_one(control: ControlPlane) -> None:
    session = await opened(control)
    first, second = (Leases(control.redis, worker, 5.0, 16) for worker in ("w1", "w2"))
    lease = await first.acquire(session)
    assert lease is not None
    for count in (1, 2):
        await walk(control, session)
        assert await told(control, "w1") == [session] * count
    await first.release(session, lease, "handover")
    assert await second.acquire(session) is not None
    await walk(control, session)
    assert await told(control, "w2") == [session]


async def test_without_an_owner_all_workers_are_asked(control: ControlPlane) -> None:
    session = await opened(control)
    leases = Leases(control.redis, "w1", 5.0, 16)
    lease = await leases.acquire(session)
    assert lease is not None
    await walk(control, session)
    await leases.release(session, lease, "handover")
    await control.redis.delete(keys.WAKE)
    await walk(control, session)
    assert await control.redis.xlen(keys.WAKE) == 1


async def test_each_of_many_at_once_has_its_own_answer(control: ControlPlane) -> None:
    sessions = [await opened(control) for _ in range(3)]
    leases = Leases(control.redis, "w1", 5.0, 16)
    for session in sessions:
        assert await leases.acquire(session) is not None
        await walk(control, session)
    await control.sessions.delete(sessions[1])
    asked = [walk(control, one) for one in (*sessions, "s1")]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(one) for one in answers] == [
        type(None), SessionDeleted, type(None), UnknownSession,
    ]  # fmt: skip
    heard = await told(control, "w1")
    assert [heard.count(one) for one in sessions[::2]] == [2, 2]


async def test_a_server_that_forgot_the_script_is_sent_it_again(control: ControlPlane) -> None:
    session = await opened(control)
    await walk(control, session)
    await control.redis.script_flush()
    await walk(control, session)
    assert await control.redis.xlen(keys.log(session)) == 2  # the first image, the newest pose
    await control.sessions.delete(session)
    with pytest.raises(SessionDeleted):
        await walk(control, session)


async def test_the_sweeper_is_told_again_after_a_part_of_a_lease(
    control: ControlPlane, settings: Settings
) -> None:
    session = await opened(control)
    assert await Leases(control.redis, "w1", 5.0, 16).acquire(session) is not None
    noted = []
    async with control.redis.pubsub() as ears:
        await ears.subscribe(keys.inbox("w1"))
        for pause_s in (0.0, 0.0, NOTED_PART * settings.lease_s + 0.05):
            await asyncio.sleep(pause_s)
            await walk(control, session)
            noted.append(await control.redis.zscore(keys.BUSY, session))
    assert noted[0] == noted[1] < noted[2]
    assert await control.redis.zscore(keys.EXPIRY, session) is not None


async def test_whoever_did_not_hear_is_noted_at_once(control: ControlPlane) -> None:
    session = await opened(control)
    leases = Leases(control.redis, "w1", 5.0, 16)
    lease = await leases.acquire(session)
    assert lease is not None
    async with control.redis.pubsub() as ears:
        await ears.subscribe(keys.inbox("w1"))
        await walk(control, session)
    await control.redis.zrem(keys.BUSY, session)  # the sweeper found it quiet
    await leases.release(session, lease, "handover")
    await walk(control, session)
    assert await control.redis.zscore(keys.BUSY, session) is not None
