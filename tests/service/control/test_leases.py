"""Leases and commits: one owner at a time, all or nothing, and no request is left waiting."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from typing import Any

import pytest
from plane import leases_of, new_session, step

from service.control import keys, scripts
from service.control.deletion import deleted_path
from service.control.leases import Commit
from service.control.plane import ControlPlane
from service.control.requests import Generate, LivePose
from service.control.sessions import IDENTITY
from service.errors import LeaseLost, SessionDeleted

PATH = Generate(poses=[IDENTITY] * 10)


async def test_one_owner_at_a_time(control: ControlPlane) -> None:
    session = await new_session(control)
    one, two = leases_of(control, "w1"), leases_of(control, "w2")
    lease = await one.acquire(session.id)
    assert lease == "w1.1"
    assert await two.acquire(session.id) is None
    assert await one.acquire(session.id) is None  # not even itself
    assert (await control.sessions.get(session.id)).state == "active"


async def test_what_is_sent_again_because_its_answer_was_lost_is_answered_as_at_first(
    control: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = scripts.run

    async def twice(*call: Any) -> Any:
        await run(*call)
        return await run(*call)

    session, leases = await new_session(control), leases_of(control)
    monkeypatch.setattr(scripts, "run", twice)
    lease = await leases.acquire(session.id)
    assert lease and await leases.renew({session.id: lease}) == set()
    await control.sessions.delete(session.id)
    assert deleted_path(session.id) in [
        one.path for one in await control.segments.objects.below(f"sessions/{session.id}")
    ]
    with pytest.raises(SessionDeleted):
        await control.sessions.delete(session.id)


async def test_no_lease_of_a_session_that_takes_no_work(control: ControlPlane) -> None:
    session, leases = await new_session(control), leases_of(control)
    await control.sessions.delete(session.id)
    assert await leases.acquire(session.id) is None
    assert await leases.acquire("nobody") is None


async def test_an_owner_that_slept_past_its_lease_writes_nothing(control: ControlPlane) -> None:
    session = await new_session(control)
    sleeper, other = leases_of(control, "w1", lease_s=0.2), leases_of(control, "w2")
    old = await sleeper.acquire(session.id)
    assert old
    owned = await sleeper.load(session.id)
    await asyncio.sleep(0.25)
    with pytest.raises(LeaseLost, match=r"w1\.1 is no longer held"):
        await sleeper.commit(session.id, old, step(owned, 0, 1))
    new = await other.acquire(session.id)
    assert new
    before = await control.redis.hgetall(keys.record(session.id))
    with pytest.raises(LeaseLost):
        await sleeper.commit(session.id, old, step(owned, 0, 1))
    assert await sleeper.renew({session.id: old}) == {session.id}
    assert await sleeper.release(session.id, old) == "lost"
    assert await control.redis.hgetall(keys.record(session.id)) == before
    assert await control.redis.exists(keys.frames(session.id), keys.manifest(session.id)) == 0
    assert (await other.commit(session.id, new, step(owned, 0, 1))).version


async def test_a_renewed_lease_outlives_its_time(control: ControlPlane) -> None:
    session, leases = await new_session(control), leases_of(control, lease_s=300.0)
    lease = await leases.acquire(session.id)
    assert lease
    await control.redis.pexpire(keys.lease(session.id), 100_000)  # so much of its time is left
    assert await leases.renew({session.id: lease}) == set()
    assert await control.redis.pttl(keys.lease(session.id)) > 200_000


async def test_a_commit_changes_everything_at_once(control: ControlPlane) -> None:
    session, leases = await new_session(control), leases_of(control)
    await control.requests.append(session.id, PATH)
    lease = await leases.acquire(session.id)
    assert lease
    owned = await leases.load(session.id)
    done = await leases.commit(session.id, lease, step(owned, 0, 4))
    after = await leases.load(session.id)
    assert done.version == after.session.version == owned.session.version + 1
    assert (after.session.tip, after.session.num_segments) == ("segment-0", 1)
    assert after.session.next_frame == 4
    assert after.cursor == owned.entries[0].entry
    assert [entry.id for entry in after.entries] == [owned.entries[1].id]  # the log was trimmed
    assert [one.id for one in await control.frames.manifest(session.id)] == ["segment-0"]
    first = await control.requests.get(session.id, session.init_request)
    assert (first.state, first.done) == ("done", 4)


async def test_a_commit_sent_again_because_its_answer_was_lost_is_done_once(
    control: ControlPlane,
) -> None:
    session, leases = await new_session(control), leases_of(control)
    lease = await leases.acquire(session.id)
    assert lease
    owned = await leases.load(session.id)
    first = await leases.commit(session.id, lease, step(owned, 0, 1))
    assert await leases.commit(session.id, lease, step(owned, 0, 1)) == first
    assert len(await control.frames.read(session.id)) == 1
    assert len(await control.frames.manifest(session.id)) == 1


async def test_a_commit_on_another_tip_is_refused_whole(control: ControlPlane) -> None:
    session, leases = await new_session(control), leases_of(control)
    lease = await leases.acquire(session.id)
    assert lease
    owned = await leases.load(session.id)
    await leases.commit(session.id, lease, step(owned, 0, 1))
    with pytest.raises(LeaseLost, match="tip is no longer ''"):
        await leases.commit(session.id, lease, step(owned, 0, 1, segment="another"))
    assert await control.redis.xlen(keys.frames(session.id)) == 1


async def test_a_path_goes_on_where_its_cursor_stands(control: ControlPlane) -> None:
    session, leases = await new_session(control), leases_of(control)
    path = await control.requests.append(session.id, PATH)
    lease = await leases.acquire(session.id)
    assert lease
    await leases.commit(session.id, lease, step(await leases.load(session.id), 0, 1))
    owned = await leases.load(session.id)
    part = dataclasses.replace(
        step(owned, 1, 4), cursor=owned.cursor, cursor_done=4, progress=owned.progress[path.id]
    )
    await control.requests.cancel(session.id, path.id)
    assert (await leases.commit(session.id, lease, part)).cancel_requested
    again = await leases.load(session.id)
    assert again.cursor_done == 4 and again.entries[0].id == path.id


async def test_a_live_pose_that_replaced_one_in_work_is_still_to_do(control: ControlPlane) -> None:
    session, leases = await new_session(control), leases_of(control)
    lease = await leases.acquire(session.id)
    assert lease
    await leases.commit(session.id, lease, step(await leases.load(session.id), 0, 1))
    await control.requests.append_live(session.id, LivePose(pose=IDENTITY, sequence=1))
    owned = await leases.load(session.id)
    await control.requests.append_live(session.id, LivePose(pose=IDENTITY, sequence=2))
    entry = owned.entries[0]
    await leases.commit(session.id, lease, Commit(owned.session.tip, entry.entry, 0, entry.id))
    left = (await leases.load(session.id)).entries
    assert [one.message.sequence for one in left] == [2]  # type: ignore[union-attr]


async def test_release_is_refused_while_there_is_work(control: ControlPlane) -> None:
    session, leases = await new_session(control), leases_of(control)
    lease = await leases.acquire(session.id)
    assert lease
    assert await leases.release(session.id, lease) == "ahead"
    await leases.commit(session.id, lease, step(await leases.load(session.id), 0, 1))
    assert await leases.release(session.id, lease) == "ok"
    assert (await control.sessions.get(session.id)).state == "idle"
    await control.requests.append(session.id, PATH)
    assert (await control.sessions.get(session.id)).state == "waiting"


async def test_a_draining_worker_hands_over(control: ControlPlane) -> None:
    session, leases = await new_session(control), leases_of(control)
    lease = await leases.acquire(session.id)
    assert lease
    assert await leases.release(session.id, lease, "handover") == "handed over"
    assert (await control.sessions.get(session.id)).state == "waiting"
    assert await leases_of(control, "w2").acquire(session.id)


async def test_the_sweeper_wakes_a_session_whose_owner_died(control: ControlPlane) -> None:
    session, leases = await new_session(control), leases_of(control, lease_s=300.0)
    await leases.acquire(session.id)
    await control.redis.delete(keys.WAKE)  # and the wake was lost with it
    await control.redis.zadd(keys.BUSY, {session.id: 0})
    await control.sweeper.wake_orphans()
    assert await control.redis.xlen(keys.WAKE) == 0
    looks_again_s = await control.redis.zscore(keys.BUSY, session.id)
    assert 0 < looks_again_s - time.time() < 310  # when the lease could end
    await control.redis.delete(keys.lease(session.id))
    await control.redis.zadd(keys.BUSY, {session.id: 0})
    await control.sweeper.wake_orphans()
    assert await control.redis.xlen(keys.WAKE) == 1
    assert (await control.sessions.get(session.id)).state == "waiting"


async def test_the_sweeper_finds_what_was_never_announced(control: ControlPlane) -> None:
    await new_session(control)
    await control.redis.delete(keys.WAKE, keys.BUSY)
    await control.sweeper.scan()
    assert await control.redis.xlen(keys.WAKE) == 1


async def test_the_sweeper_stops_looking_at_what_is_done(control: ControlPlane) -> None:
    session, leases = await new_session(control), leases_of(control)
    lease = await leases.acquire(session.id)
    assert lease
    await leases.commit(session.id, lease, step(await leases.load(session.id), 0, 1))
    await leases.release(session.id, lease)
    await control.redis.zadd(keys.BUSY, {session.id: 0})
    await control.sweeper.wake_orphans()
    assert await control.redis.zcard(keys.BUSY) == 0


async def test_the_sweeper_keeps_a_note_until_it_is_due(control: ControlPlane) -> None:
    """Gateways write one for all requests of the next moments: those may come after a look."""
    session, leases = await new_session(control), leases_of(control)
    lease = await leases.acquire(session.id)
    assert lease
    due_s = time.time() + 100
    await control.redis.zadd(keys.BUSY, {session.id: due_s})
    await control.sweeper.scan()  # it has an owner and work
    await leases.commit(session.id, lease, step(await leases.load(session.id), 0, 1))
    await control.sweeper.scan()  # and none
    assert await control.redis.zscore(keys.BUSY, session.id) == due_s
