"""What nothing refers to is removed, and never anything else: forks, snapshots, rewinds, deletions
in any order, and a sweep that is cut short anywhere."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from pathlib import Path

import pytest
from test_branches import BACK, OUT, done, forked, images, undisturbed, walk
from test_loop import open_session, serving

from service import keys
from service.branches import ForkIn, RewindIn, SnapshotIn
from service.collection import Collection
from service.control import ControlPlane
from service.heads import is_due
from service.segments import segment_id
from service.settings import Settings


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Nobody loses a lease here, however busy the machine is."""
    return settings.model_copy(update={"lease_s": 20.0})


def collection(control: ControlPlane, grace_s: float = 0.0) -> Collection:
    return Collection(control.redis, control.segments, control.heads, grace_s)


def files(settings: Settings, session: str) -> list[Path]:
    folder = settings.data_dir / "segments" / "sessions" / session
    return sorted(path for path in folder.rglob("*") if path.is_file())


async def test_what_a_rewind_dropped_goes_and_what_a_snapshot_names_stays(
    control: ControlPlane, settings: Settings
) -> None:
    async with serving(control, settings):
        whole = await undisturbed(control)
        session = await open_session(control, 3)
        await walk(control, session.id, OUT)
        await done(
            control, session.id, await control.branches.snapshot(session.id, SnapshotIn(name="a"))
        )
        await walk(control, session.id, OUT)  # two chunks that nobody names
        back = await control.branches.rewind(session.id, RewindIn(frame=4))
        await done(control, session.id, back)
        orphan = segment_id(2, "w9.1", b"left by a crash")
        await control.segments.put(session.id, orphan, b"left by a crash")
        heads = len(await control.heads.ids(session.id))  # one more if its turn came on the way
        assert heads > keys.HEADS_KEPT
        assert await collection(control, grace_s=60).collect(session.id) == 0
        unnamed = 2 + 1 + 1  # chunks, the orphan, the picture it began with
        dropped = unnamed + heads - keys.HEADS_KEPT
        assert await collection(control).collect(session.id) == dropped
        assert len(await control.segments.ids(session.id)) == 3
        assert await collection(control).collect(session.id) == 0
        back = await control.branches.rewind(session.id, RewindIn(snapshot="a"))
        await done(control, session.id, back)
        assert images(await walk(control, session.id, BACK)) == images(whole)


async def test_what_is_wanted_again_within_the_grace_period_stays(control: ControlPlane) -> None:
    session = await open_session(control)
    orphan = segment_id(0, "w9.1", b"x")
    await control.segments.put(session.id, orphan, b"x")
    gentle = collection(control, grace_s=0.2)
    await asyncio.sleep(0.25)
    assert await gentle.collect(session.id) == 0  # seen for the first time
    assert await control.redis.zcard(keys.garbage(session.id)) == 1
    again = await control.redis.zscore(keys.COLLECT, session.id)
    assert again is not None and again < time.time() + 2
    await asyncio.sleep(0.25)
    assert await gentle.collect(session.id) == 1
    assert await control.redis.zcard(keys.garbage(session.id)) == 0


async def test_a_deleted_session_leaves_what_its_forks_use_until_they_are_gone(
    control: ControlPlane, settings: Settings
) -> None:
    async with serving(control, settings):
        whole = await undisturbed(control)
        source = await open_session(control, 3)
        await walk(control, source.id, OUT)
        child = await forked(control, source.id, ForkIn(frame=4))
        await walk(control, child.id, OUT[4:])
        grandchild = await forked(control, child.id, ForkIn())
        for one in (source, child):
            await control.sessions.delete(one.id)
            await control.sweeper.empty_graves()
        left = [await control.segments.ids(one.id) for one in (source, child, grandchild)]
        assert [len(one) for one in left] == [2, 1, 0]
        assert images(await walk(control, grandchild.id, BACK)) == images(whole)
    assert (await control.collection.forks(source.id)).users == [grandchild.id]
    await control.sessions.delete(grandchild.id)
    for one in (grandchild, child, source):  # their turn comes by itself every minute
        await control.redis.zadd(keys.forks(one.id), {"nobody": 0})
        await control.redis.zadd(keys.forks(source.id), {child.id: 0})
        await control.redis.zadd(keys.forks(child.id), {grandchild.id: 0})
        await control.collection.bury(one.id)
    for one in (source, child, grandchild):
        assert files(settings, one.id) == []
        assert not await control.redis.exists(keys.forks(one.id))
    assert not await control.redis.exists(keys.GRAVES)


async def test_a_fork_that_is_just_being_made_keeps_everything(control: ControlPlane) -> None:
    session = await open_session(control)
    await control.redis.zadd(keys.forks(session.id), {"not-yet": time.time()})
    await control.sessions.delete(session.id)
    assert await control.collection.bury(session.id) == 0
    await control.redis.zadd(keys.forks(session.id), {"not-yet": time.time() - 3600})
    assert await control.collection.bury(session.id) > 0


@pytest.mark.parametrize("seed", range(3))
async def test_any_order_of_forks_rewinds_and_deletions_with_sweeps_cut_short(
    control: ControlPlane, settings: Settings, seed: int
) -> None:
    """Whatever happened, a living World restores: every segment that it names is there."""
    rng = random.Random(seed)
    async with serving(control, settings):
        first = await open_session(control, 3)
        await walk(control, first.id, OUT)
        living = [first.id]
        for _ in range(14):
            one = rng.choice(living)
            what = rng.choice(["fork", "fork", "rewind", "walk", "delete", "name"])
            if what == "fork":
                at = ForkIn(frame=rng.choice([None, 0]))
                living.append((await forked(control, one, at)).id)
            elif what == "rewind":
                await done(control, one, await control.branches.rewind(one, RewindIn(frame=0)))
            elif what == "walk":
                await walk(control, one, OUT[:4])
            elif what == "name":
                ask = SnapshotIn(name="n", replace=True)
                await done(control, one, await control.branches.snapshot(one, ask))
            elif len(living) > 1:
                living.remove(one)
                await control.sessions.delete(one)
            sweep = asyncio.create_task(sweep_all(control, living))
            await asyncio.wait([sweep], timeout=rng.random() * 0.05)
            sweep.cancel()
            await asyncio.wait([sweep])
    await sweep_all(control, living)
    for one in living:
        await check_whole(control, one)


async def check_whole(control: ControlPlane, session: str) -> None:
    """Every segment that a World and its snapshots name is there."""
    head = await control.heads.current(session)
    for way in [head, *[await control.heads.named(head, name) for name in head.names]]:
        for entry in way.manifest:
            await control.segments.get(entry.home or session, entry.id)


async def sweep_all(control: ControlPlane, living: list[str]) -> None:
    for name in await control.redis.zrange(keys.GRAVES, 0, -1):
        await control.collection.bury(name.decode())
    for one in living:
        await collection(control).collect(one)


def test_heads_are_written_ever_more_rarely() -> None:
    for session in ("one", "another"):
        due = [n for n in range(1, 40_001) if is_due(session, n)]
        assert due[0] <= 64
        assert sum(due) < 25 * 40_000  # entries written per segment stay bounded
        gaps = [(at, after - at) for at, after in itertools.pairwise([1, *due])]
        assert all(gap <= max(128, at / 4) for at, gap in gaps)


def test_sessions_that_walk_in_step_write_their_heads_at_different_times() -> None:
    sessions = [f"s{number}" for number in range(64)]
    at_once = [sum(is_due(session, n) for session in sessions) for n in range(64, 128)]
    assert sum(at_once) == len(sessions)
    assert max(at_once) <= 6
