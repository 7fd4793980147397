"""Fork, rewind and snapshot with a real Valkey, store, loop and engine: what goes on afterwards is
bit-equal to a World that was never disturbed."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from noop_worker import open_session, pose, read_until, serving
from out_and_back import BACK, OUT, done, forked, frames_of, images, undisturbed, walk

from service.app import create_app
from service.control import keys, scripts
from service.control.branches import ForkIn, RewindIn, SnapshotIn
from service.control.leases import Leases
from service.control.plane import ControlPlane
from service.control.requests import Generate
from service.control.sessions import SessionState
from service.errors import GenerationFailed, UnknownSnapshot, VersionConflict, error_of
from service.paths import last_camera
from service.settings import Settings
from service.stream.messages import OpenMessage
from service.stream.planes import Planes
from service.stream.resuming import resume_after


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Nobody loses a lease here, however busy the machine is."""
    return settings.model_copy(update={"lease_s": 20.0})


async def test_a_fork_goes_on_as_its_source_does_and_copies_no_segment(
    control: ControlPlane, settings: Settings
) -> None:
    async with serving(control, settings):
        whole = await undisturbed(control)
        source = await open_session(control, 3)
        await walk(control, source.id, OUT)
        fork = await forked(control, source.id, ForkIn())
        assert fork.origin == f"fork:{source.id}" and fork.state == SessionState.IDLE
        assert (fork.next_frame, fork.branch, fork.branch_first_frame) == (9, 2, 9)
        assert await control.segments.ids(fork.id) == []
        ways = [await walk(control, one, BACK) for one in (fork.id, source.id)]
        assert images(ways[0]) == images(ways[1]) == images(whole)
        other = await forked(control, source.id, ForkIn(frame=8, seed=99))
        assert images(await walk(control, other.id, BACK))[:9] == images(whole)[:9]
        assert (await control.sessions.get(other.id)).seed == 99


async def test_a_fork_of_a_fork_outlives_both(control: ControlPlane, settings: Settings) -> None:
    async with serving(control, settings):
        whole = await undisturbed(control)
        source = await open_session(control, 3)
        await walk(control, source.id, OUT[:4])
        child = await forked(control, source.id, ForkIn())
        await walk(control, child.id, OUT[4:])
        grandchild = await forked(control, child.id, ForkIn())
        assert images(await walk(control, grandchild.id, BACK)) == images(whole)


async def test_a_rewound_world_goes_on_as_one_that_never_went_further(
    control: ControlPlane, settings: Settings
) -> None:
    async with serving(control, settings):
        whole = await undisturbed(control)
        session = await open_session(control, 3)
        await walk(control, session.id, [*OUT, *OUT])
        asked = await control.branches.rewind(session.id, RewindIn(frame=8))
        assert await done(control, session.id, asked) == {"branch": 2, "num_frames": 9}
        after = await control.sessions.get(session.id)
        assert (after.next_frame, after.branch, after.branch_first_frame) == (9, 2, 9)
        assert await control.frames.read(session.id, after=8, branch=1) == []
        frames = await walk(control, session.id, BACK)
        assert images(frames) == images(whole)
        assert [frame.branch for frame in frames] == [1] * 9 + [2] * 8


async def test_a_rewind_keeps_whole_chunks(control: ControlPlane, settings: Settings) -> None:
    async with serving(control, settings):
        session = await open_session(control, 3)
        await walk(control, session.id, OUT)
        asked = await control.branches.rewind(session.id, RewindIn(frame=7))
        assert (await done(control, session.id, asked))["num_frames"] == 5
        asked = await control.branches.rewind(session.id, RewindIn(frame=5))
        with pytest.raises(Exception, match=r"0 \.\. 4"):
            await done(control, session.id, asked)


async def test_a_client_that_comes_back_has_what_rewinds_have_left_of_it(
    control: ControlPlane, settings: Settings
) -> None:
    async with serving(control, settings):
        session = await open_session(control)
        ends = []
        for frame in (8, 4):  # branches 2 and 3 begin behind these
            await walk(control, session.id, [*OUT, *BACK])
            back = await control.branches.rewind(session.id, RewindIn(frame=frame))
            ends.append(int(str((await done(control, session.id, back))["num_frames"])) - 1)
            now = await control.sessions.get(session.id)
            seen = OpenMessage(after=16, branch=1)
            assert await resume_after(control, now, seen) == min(ends)  # and nothing was made yet
        await walk(control, session.id, OUT)
    now = await control.sessions.get(session.id)
    newest = now.next_frame - 1
    assert now.branch == 3 and min(ends) < newest

    async def resumed(after: int | None, branch: int | None = None) -> int:
        return await resume_after(control, now, OpenMessage(after=after, branch=branch))

    assert await resumed(None) == newest
    assert [await resumed(2, branch) for branch in (None, 1, 2, 3, 4)] == [2] * 5
    assert await resumed(16, 1) == await resumed(16, 2) == min(ends)
    assert await resumed(newest, 3) == await resumed(newest) == await resumed(999) == newest


async def test_a_snapshot_is_there_after_the_world_was_rewound_past_it(
    control: ControlPlane, settings: Settings
) -> None:
    async with serving(control, settings):
        whole = await undisturbed(control)
        session = await open_session(control, 3)
        await walk(control, session.id, OUT)
        asked = await control.branches.snapshot(session.id, SnapshotIn(name="far out"))
        assert await done(control, session.id, asked) == {"name": "far out", "num_frames": 9}
        asked = await control.branches.rewind(session.id, RewindIn(frame=0))
        await done(control, session.id, asked)
        await walk(control, session.id, [pose(50)])
        fork = await forked(control, session.id, ForkIn(snapshot="far out"))
        back = await control.branches.rewind(session.id, RewindIn(snapshot="far out"))
        assert await done(control, session.id, back) == {"branch": 3, "num_frames": 9}
        for one in (session.id, fork.id):
            assert images(await walk(control, one, BACK)) == images(whole)
        (named,) = await control.branches.snapshots(session.id)
        assert (named.name, named.num_frames) == ("far out", 9)


async def test_what_a_snapshot_of_another_branch_brings_back_is_new_to_clients(
    control: ControlPlane, settings: Settings
) -> None:
    async with serving(control, settings):
        session = await open_session(control, 3)
        await walk(control, session.id, OUT)
        named = await control.branches.snapshot(session.id, SnapshotIn(name="far out"))
        await done(control, session.id, named)
        back = await control.branches.rewind(session.id, RewindIn(frame=4))
        await done(control, session.id, back)
        await walk(control, session.id, BACK)
        back = await control.branches.rewind(session.id, RewindIn(snapshot="far out"))
        assert await done(control, session.id, back) == {"branch": 3, "num_frames": 9}
        now = await control.sessions.get(session.id)
    assert (now.next_frame, now.branch, now.branch_first_frame) == (9, 3, 5)
    for branch in (1, 2):  # frames from 5 on are none that branch 2 had
        assert await resume_after(control, now, OpenMessage(after=12, branch=branch)) == 4
    assert await resume_after(control, now, OpenMessage(after=3, branch=2)) == 3
    assert await resume_after(control, now, OpenMessage(after=8, branch=3)) == 8


async def test_every_camera_goes_on_from_where_the_world_has_it(
    control: ControlPlane, settings: Settings
) -> None:
    """What a rewind or a restored snapshot took back is no place to go on from."""
    async with serving(control, settings):
        session = await open_session(control, 3)

        async def walked(camera: int, at: int, name: str = session.id) -> None:
            path = Generate(poses=[pose(at + i) for i in range(4)], camera=camera)
            asked = await control.requests.append(name, path)
            await control.branches.wait(name, asked.id, 60)

        async def steps(name: str, *cameras: int) -> list[int]:
            """How many steps from the first image each would begin."""
            places = [await last_camera(control, name, camera) for camera in cameras]
            return [round(place[2, 3] / 0.05) for place in places]

        async def rewound(ask: RewindIn) -> None:
            await done(control, session.id, await control.branches.rewind(session.id, ask))

        await walked(1, 10)  # frames 1 to 4
        await walked(0, 20)
        assert await steps(session.id, 0, 1, 2) == [23, 13, 23]  # the third was never seen
        await walked(1, 30)
        await walked(0, 40)
        named = await control.branches.snapshot(session.id, SnapshotIn(name="far out"))
        await done(control, session.id, named)
        await rewound(RewindIn(frame=8))
        assert await steps(session.id, 0, 1, 2) == [23, 13, 23]
        await walked(1, 50)
        await walked(0, 60)
        assert await steps(session.id, 0, 1, 2) == [63, 53, 63]
        await rewound(RewindIn(snapshot="far out"))
        assert await steps(session.id, 0, 1, 2) == [43, 33, 43]
        await walked(0, 70)
        assert await steps(session.id, 0, 1, 2) == [73, 33, 73]
        fork = await forked(control, session.id, ForkIn())
        assert await steps(fork.id, 0, 1, 2) == [73, 33, 73]
        await walked(2, 80, fork.id)
        assert await steps(fork.id, 0, 1, 2) == [73, 33, 83]


async def test_a_frame_of_a_new_branch_has_its_own_depth_and_coverage(
    control: ControlPlane, settings: Settings
) -> None:
    async with serving(control, settings):
        session = await open_session(control, 3)
        read = Planes(control, session.id, ["depth", "coverage"])
        before = (await walk(control, session.id, OUT))[8]
        seen = await read.of(before)
        assert len(seen) == 2
        back = await control.branches.rewind(session.id, RewindIn(frame=4))
        await done(control, session.id, back)
        after = (await walk(control, session.id, [pose(20 + i) for i in range(4)]))[8]
        fresh = await Planes(control, session.id, ["depth", "coverage"]).of(after)
        assert await read.of(after) == fresh != seen
        assert await read.of(before) == []


async def test_a_name_is_given_once_unless_told_to_replace(
    control: ControlPlane, settings: Settings
) -> None:
    async with serving(control, settings):
        session = await open_session(control)
        first = await control.branches.snapshot(session.id, SnapshotIn(name="a"))
        await done(control, session.id, first)
        await walk(control, session.id, OUT[:1])
        again = await control.branches.snapshot(session.id, SnapshotIn(name="a"))
        with pytest.raises(Exception, match="choose another name"):
            await done(control, session.id, again)
        ask = SnapshotIn(name="a", replace=True)
        third = await control.branches.snapshot(session.id, ask)
        assert (await done(control, session.id, third))["num_frames"] == 2
        await control.branches.forget(session.id, "a")
        with pytest.raises(UnknownSnapshot):
            await control.branches.forget(session.id, "a")
        gone = await control.branches.fork(session.id, ForkIn(snapshot="a"))
        with pytest.raises(UnknownSnapshot, match="it has none"):
            await done(control, session.id, gone)


async def test_the_head_with_a_new_name_is_newer_than_one_without(
    control: ControlPlane, settings: Settings
) -> None:
    """The head's turn may come just before: at one version, chance would say which is newest."""
    async with serving(control, settings):
        session = await open_session(control)
        await read_until(control, session.id, 0)
    await control.branches.snapshot(session.id, SnapshotIn(name="a"))
    leases = Leases(control.redis, "w1", 20.0, 8)
    lease = await leases.acquire(session.id)
    assert lease
    owned = await leases.load(session.id)
    await control.heads.checkpoint(session.id)
    without = (await control.heads.ids(session.id))[-1]
    await control.lineage.execute(owned.session, owned.entries[0], None, lease)
    name = (await control.heads.ids(session.id))[-1]
    assert int(name.partition("-")[0]) == (await control.sessions.get(session.id)).version
    assert list((await control.heads.get(session.id, name)).names) == ["a"]
    assert int(name.partition("-")[0]) > int(without.partition("-")[0])


async def test_what_is_asked_is_done_in_order_with_steps(
    control: ControlPlane, settings: Settings
) -> None:
    """Everything is in the log before a worker looks."""
    session = await open_session(control, 3)
    await control.requests.append(session.id, Generate(poses=OUT))
    named = await control.branches.snapshot(session.id, SnapshotIn(name="here"))
    await control.requests.append(session.id, Generate(poses=OUT))
    back = await control.branches.rewind(session.id, RewindIn(snapshot="here"))
    await control.requests.append(session.id, Generate(poses=BACK))
    fork = await control.branches.fork(session.id, ForkIn(snapshot="here"))
    async with serving(control, settings):
        whole = await undisturbed(control)
        assert (await done(control, session.id, named))["num_frames"] == 9
        assert (await done(control, session.id, back))["num_frames"] == 9
        target = str((await done(control, session.id, fork))["session"])
        assert images(await frames_of(control, session.id, 17)) == images(whole)
        assert images(await walk(control, target, BACK)) == images(whole)


async def test_a_rewind_at_another_version_is_refused(control: ControlPlane) -> None:
    session = await open_session(control)
    with pytest.raises(VersionConflict, match=f"at version {session.version}, no longer at 99"):
        await control.branches.rewind(session.id, RewindIn(frame=0), if_version=99)
    assert await control.redis.xlen(keys.log(session.id)) == 1


async def test_a_rewind_that_lost_its_worker_halfway_is_finished_by_the_next(
    control: ControlPlane, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head has moved and the request is not acknowledged: it is not moved again."""
    async with serving(control, settings):
        session = await open_session(control, 3)
        await walk(control, session.id, OUT)
        await read_until(control, session.id, 8)
    asked = await control.branches.rewind(session.id, RewindIn(frame=4))
    before = await control.sessions.get(session.id)
    leases = Leases(control.redis, "w1", 5.0, 8)
    lease = await leases.acquire(session.id)
    assert lease
    owned = await leases.load(session.id)
    entry = owned.entries[0]
    run = scripts.run

    async def twice(*call: Any) -> Any:  # its answer was lost at first
        await run(*call)
        return await run(*call)

    with monkeypatch.context() as patched:
        patched.setattr(scripts, "run", twice)
        await control.lineage.execute(owned.session, entry, owned.progress[entry.id], lease)
    await leases.release(session.id, lease, "handover")  # and no commit
    await control.requests.cancel(session.id, asked.id)  # too late
    await control.requests.wake(session.id)
    async with serving(control, settings):
        result = await done(control, session.id, asked)
    assert result == {"branch": before.branch + 1, "num_frames": 5}


def test_a_failure_that_was_kept_is_raised_as_it_was() -> None:
    error = error_of({"type": "urn:mirage:problem:unknown-snapshot", "detail": "none such"})
    assert isinstance(error, UnknownSnapshot) and error.detail == "none such"
    assert isinstance(error_of({"type": "urn:x:new", "detail": "?"}), GenerationFailed)


async def test_a_video_reads_each_segment_once_and_is_gone_with_its_frames(
    control: ControlPlane, settings: Settings
) -> None:
    app = create_app(settings)
    async with app.router.lifespan_context(app), serving(control, settings):
        session = await open_session(control)
        poses = [pose(i) for i in range(1, 21)]
        path = await control.requests.append(session.id, Generate(poses=poses))
        await control.branches.wait(session.id, path.id, 60)
        await control.redis.delete(keys.frames(session.id))
        store = app.state.gateway.control.segments.objects
        read, paths = store.read_verified, list[str]()

        async def counted(path: str, checksum: str) -> bytes:
            paths.append(path)
            return await read(path, checksum)

        store.read_verified = counted
        url = f"/v1/sessions/{session.id}/generations/{path.id}/video.mp4"
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            for _ in range(2):  # made, then kept
                assert (await http.get(url)).status_code == 200
            assert len(paths) == len(set(paths)) == 5
            back = await control.branches.rewind(session.id, RewindIn(frame=8))
            await done(control, session.id, back)
            gone = await http.get(url)
            assert gone.status_code == 410 and gone.json()["type"].endswith("frames-gone")
