"""What nothing refers to is removed, and never anything else: forks, snapshots, rewinds, deletions
in any order, and a sweep that is cut short anywhere."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from noop_worker import INTRINSICS, open_session, serving
from out_and_back import BACK, OUT, done, forked, images, undisturbed, walk

from service.control import keys, sweeper
from service.control.branches import ForkIn, RewindIn, SnapshotIn
from service.control.frames import ManifestEntry
from service.control.heads import Head, Name, is_due
from service.control.plane import ControlPlane
from service.control.sessions import NewSession
from service.control.sweeper import Sweeper
from service.settings import Settings
from service.store import collection as collection_module
from service.store.collection import Collection
from service.store.fsck import Fsck
from service.store.segments import segment_id


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
    assert list((await control.collection.forks(source.id)).users) == [grandchild.id]
    await control.sessions.delete(grandchild.id)
    for one in (grandchild, child, source):  # their turn comes by itself every minute
        await control.redis.zadd(keys.forks(one.id), {"nobody": 0})
        await control.redis.zadd(keys.forks(source.id), {child.id: 0})
        await control.redis.zadd(keys.forks(child.id), {grandchild.id: 0})
        for _ in range(2):
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


async def look(control: ControlPlane, session: str) -> None:
    """The grave's next turn, now."""
    await control.redis.zadd(keys.GRAVES, {session: 0}, xx=True)
    await control.sweeper.empty_graves()


async def test_what_is_stored_after_the_first_look_into_a_grave_goes_with_the_next(
    control: ControlPlane, settings: Settings
) -> None:
    session = await open_session(control)
    head = await control.heads.current(session.id)
    await control.sessions.delete(session.id)
    await look(control, session.id)
    late = segment_id(0, "w9.1", b"x")  # by an owner who has not heard of it
    await control.segments.put(session.id, late, b"x")
    await control.heads.write(head)
    for _ in range(2):
        await look(control, session.id)
    assert files(settings, session.id) == []
    assert not await control.redis.exists(keys.GRAVES)


async def test_a_mark_of_deletion_that_comes_after_the_last_look_goes_too(
    control: ControlPlane, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = control.segments.objects.put

    async def slow(path: str, data: bytes) -> None:
        for _ in range(2):
            await look(control, session.id)
        await put(path, data)

    session = await open_session(control)
    with monkeypatch.context() as patched:
        patched.setattr(control.segments.objects, "put", slow)
        await control.sessions.delete(session.id)
    assert [one.name for one in files(settings, session.id)] == ["deleted"]
    await look(control, session.id)
    assert files(settings, session.id) == []
    assert not await control.redis.exists(keys.GRAVES)


async def test_an_expired_world_whose_forks_live_is_known_as_such_when_redis_is_lost(
    control: ControlPlane, settings: Settings
) -> None:
    async with serving(control, settings):
        source = await open_session(control, 3)
        await walk(control, source.id, OUT)
        fork = await forked(control, source.id, ForkIn())
    await control.redis.hset(keys.record(source.id), "expires_s", 0)
    await control.redis.zadd(keys.EXPIRY, {source.id: 0})
    await control.sweeper.sweep()
    await control.redis.flushall()
    report = await control.rebuild.ensure()
    assert report is not None and (report.rebuilt, report.lost) == ([fork.id], {})
    await look(control, source.id)
    assert len(await control.segments.ids(source.id)) == 3
    await control.sessions.delete(fork.id)
    for one in (fork.id, source.id):
        await control.redis.zadd(keys.forks(source.id), {fork.id: 0}, xx=True)
        for _ in range(2):
            await look(control, one)
    assert files(settings, source.id) == []


async def bare(control: ControlPlane, session: str, homes: Sequence[str] = ()) -> None:
    """A session as a rebuild writes it, with a segment under each of these and one of its own."""
    manifest = [
        ManifestEntry(
            id=f"{at:08d}-w1.1-{'0' * 64}", kind="generate", branch=1, first_frame=at, num_frames=1,
            num_bytes=1, home=home,
        )
        for at, home in enumerate([*homes, ""])
    ]  # fmt: skip
    spec = NewSession(intrinsics=INTRINSICS)
    head = Head(
        session=session, version=1, spec=spec, manifest=manifest, init_request="r", created_s=0.0
    )
    await control.sessions.restore(head, homes)


async def test_a_fork_that_all_its_ancestors_know_is_counted_once(control: ControlPlane) -> None:
    names = [f"s{number}" for number in range(24)]
    for at, name in enumerate(names):  # as many ways to the last as there are sets of the others
        await bare(control, name, names[:at])
    marks = await asyncio.wait_for(control.collection.forks(names[0]), 60)
    assert sorted(marks.users) == sorted(names[1:])
    assert marks.users[names[-1]] == set(names[:-1])


async def test_a_world_may_be_forked_and_deleted_a_thousand_times(control: ControlPlane) -> None:
    """Those in between, of which nothing is left in use, are forgotten; the living one stays known
    to the one whose segments it uses."""
    names = [f"s{number}" for number in range(1200)]
    await bare(control, "last", [names[0]])
    async with control.redis.pipeline() as pipe:
        for parent, fork in itertools.pairwise([*names, "last"]):
            pipe.zadd(keys.forks(parent), {fork: 1})
        await pipe.execute()
    for name in (names[1], names[0]):
        await control.redis.zadd(keys.GRAVES, {name: 0})
        await control.sweeper.empty_graves()
    assert await control.redis.zrange(keys.GRAVES, 0, -1) == [names[0].encode()]
    assert not await control.redis.exists(keys.forks(names[1]))
    assert list((await control.collection.forks(names[0])).users) == ["last"]


async def test_what_one_session_has_damaged_costs_only_that_one(
    control: ControlPlane, settings: Settings, logs_of: Callable[..., list[Any]]
) -> None:
    """A snapshot that can't be read: it may name any of the segments, so all of them stay."""
    rotten, torn, sound = [await open_session(control) for _ in range(3)]
    snapshot = await control.heads.put_snapshot(await control.heads.current(rotten.id))
    name = Name(
        name="x", tip="t", branch=1, num_segments=3, num_frames=3, head=snapshot, created_s=0.0
    )
    await control.redis.hset(keys.names(rotten.id), "x", name.model_dump_json())
    (stored,) = settings.data_dir.rglob(f"snapshots/{snapshot}*")
    stored.write_bytes(b"bit rot")
    await control.redis.xadd(keys.log(torn.id), {"id": "r", "kind": "observe", "body": "{"})
    for one in (rotten, torn, sound):
        await control.segments.put(one.id, segment_id(0, "w9.1", b"x"), b"x")
    fresh = Sweeper(
        control.redis, control.requests, collection(control), control.rebuild, control.kept, 1.0
    )
    logs = logs_of(sweeper, collection_module)
    for _ in range(3):
        due = dict.fromkeys((torn.id, rotten.id, sound.id), 0)
        await control.redis.zadd(keys.COLLECT, due)
        await fresh.sweep()
        await control.redis.delete(*[keys.collecting(one) for one in due])
    told = [(one["session"], one["event"]) for one in logs if one["log_level"] == "error"]
    assert sorted(told) == sorted(
        [(rotten.id, "snapshot can't be read"), (torn.id, "session can't be repaired")]
    )
    assert await control.segments.ids(sound.id) == []
    for one in (rotten, torn):
        assert len(await control.segments.ids(one.id)) == 1
        again = await control.redis.zscore(keys.COLLECT, one.id)
        assert again is not None and again > time.time()
    assert (await Fsck(control).check()).inconsistent.keys() == {torn.id}
    assert (await control.collection.forks(rotten.id)).users == {}


async def test_a_fork_that_can_t_be_read_keeps_what_it_may_use(control: ControlPlane) -> None:
    source, fork = await open_session(control), await open_session(control)
    await control.redis.zadd(keys.forks(source.id), {fork.id: 1})
    await control.redis.hset(keys.record(fork.id), "spec", "{")
    await control.sessions.delete(source.id)
    assert await control.collection.bury(source.id) == 0
    assert await control.redis.zscore(keys.GRAVES, source.id)


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
