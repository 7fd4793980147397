"""The wake queue: a session waits in it once, until somebody takes it; who is gone is forgotten."""

from __future__ import annotations

import asyncio

import pytest
from plane import leases_of, new_session
from redis.crc import key_slot

from service.control import keys
from service.control.plane import ControlPlane
from service.control.requests import LivePose
from service.control.sessions import IDENTITY
from service.control.wake import WakeQueue


async def queue_of(control: ControlPlane, worker: str = "w1") -> WakeQueue:
    queue = WakeQueue(control.redis, worker, lease_s=300.0)
    await queue.open()
    return queue


async def pulled(queue: WakeQueue) -> list[str]:
    return [wake.session for wake in await queue.pull(16, 0.01)]


async def walk(control: ControlPlane, session: str) -> None:
    await control.requests.append_live(session, LivePose(pose=IDENTITY))


async def due(control: ControlPlane, session: str) -> None:
    """The sweeper's turn to look at it."""
    await control.redis.zadd(keys.BUSY, {session: 0})
    await control.sweeper.wake_orphans()


async def test_a_session_that_much_is_asked_of_waits_once(control: ControlPlane) -> None:
    session, other = (await new_session(control)).id, (await new_session(control)).id
    for _ in range(5):
        await asyncio.gather(*(walk(control, session) for _ in range(4)))
        await due(control, session)
    queue = await queue_of(control)
    assert (await queue.waiting())[0] == (await control.sessions.usage()).waiting["worker"] == 2
    await walk(control, session)
    assert await pulled(queue) == [session, other]  # in the order in which they were woken first


async def test_what_is_asked_after_it_was_done_with_wakes_again(control: ControlPlane) -> None:
    session, queue = (await new_session(control)).id, await queue_of(control)
    (wake,) = await queue.pull(16, 0.01)
    await queue.ack([wake.message])
    assert await control.redis.exists(keys.WAKE, keys.WOKEN) == 1  # the stream, for its group
    for _ in range(3):
        await walk(control, session)
    assert (await queue.waiting())[0] == 1 and await pulled(queue) == [session]


@pytest.mark.parametrize("is_pulled", [False, True])
async def test_a_session_that_is_deleted_waits_no_longer(
    control: ControlPlane, is_pulled: bool
) -> None:
    """Workers are added for those that wait, from none: nobody may be there to pull it."""
    session, other = (await new_session(control)).id, (await new_session(control)).id
    queue = await queue_of(control)
    wakes = await queue.pull(1, 0.01) if is_pulled else []
    await control.sessions.delete(session)
    assert (await queue.waiting())[0] == (await control.sessions.usage()).waiting["worker"] == 1
    assert await control.redis.hkeys(keys.WOKEN) == [other.encode()]
    await queue.ack([wake.message for wake in wakes])
    assert await pulled(queue) == [other]


@pytest.mark.parametrize("by", ["a request", "the sweeper"])
async def test_a_wake_whose_puller_died_before_it_took_the_session_comes_again(
    control: ControlPlane, by: str
) -> None:
    session, first = (await new_session(control)).id, await queue_of(control)
    (lost,) = await first.pull(16, 0.01)
    await (walk if by == "a request" else due)(control, session)
    (again,) = await (await queue_of(control, "w2")).pull(16, 0.01)
    assert again.session == session and again.message != lost.message
    await first.ack([lost.message])  # it was only late
    assert await pulled(first) == [] and (await first.waiting())[0] == 1
    await walk(control, session)  # and so is the second one
    assert await pulled(first) == [session]


@pytest.mark.parametrize("lost", ["the entry", "the stream"])
async def test_a_wake_that_was_trimmed_comes_again(control: ControlPlane, lost: str) -> None:
    session = (await new_session(control)).id
    if lost == "the entry":
        await control.redis.xtrim(keys.WAKE, maxlen=0, approximate=False)
    else:
        await control.redis.delete(keys.WAKE)
    await due(control, session)
    assert await pulled(await queue_of(control)) == [session]


async def test_an_owned_session_is_not_queued_by_its_requests(control: ControlPlane) -> None:
    session, queue = (await new_session(control)).id, await queue_of(control)
    (wake,) = await queue.pull(16, 0.01)
    assert await leases_of(control, lease_s=300.0).acquire(session)
    await queue.ack([wake.message])
    await walk(control, session)
    await due(control, session)
    assert (await queue.waiting())[0] == 0


async def test_a_server_that_does_not_know_the_scripts_is_sent_them(control: ControlPlane) -> None:
    session, queue = (await new_session(control)).id, await queue_of(control)
    (wake,) = await queue.pull(16, 0.01)
    await control.redis.script_flush()
    await queue.ack([wake.message])
    await control.requests.wake(session)
    assert await pulled(queue) == [session]


async def test_workers_that_are_gone_are_forgotten_with_nothing_pending(
    control: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    await control.sweeper.forget_workers()  # there is no queue yet
    session = (await new_session(control)).id
    await control.sweeper.forget_workers()  # and no group
    for worker in ("w1", "w2"):
        await pulled(await queue_of(control, worker))

    async def known() -> list[bytes]:
        return [one["name"] for one in await control.redis.xinfo_consumers(keys.WAKE, "workers")]

    assert await known() == [b"w1", b"w2"]
    await control.sweeper.forget_workers()  # they pulled just now
    assert await known() == [b"w1", b"w2"]
    monkeypatch.setattr(keys, "INBOX_S", 0)
    await control.sweeper.forget_workers()
    assert await known() == [b"w1"]
    heir = WakeQueue(control.redis, "w3", lease_s=0.0)
    assert [one.session for one in await heir.claim(16)] == [session]
    await control.sweeper.forget_workers()
    assert await known() == [b"w3"]


def test_the_queue_and_its_sessions_lie_in_one_slot() -> None:
    assert key_slot(keys.WAKE.encode()) == key_slot(keys.WOKEN.encode())
