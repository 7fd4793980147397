"""The loop with a real Valkey, a real store, the real engine and a fake backbone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from noop_worker import (
    INTRINSICS,
    PATIENCE_S,
    open_session,
    picture,
    pose,
    read_until,
    serving,
    until,
)

from bench.noop import HEIGHT, WIDTH, NoopBackbone
from service.control import keys
from service.control.plane import ControlPlane
from service.control.requests import Generate, LivePose, Observe, RequestState
from service.control.sessions import NewSession, SessionState
from service.errors import SessionDeleted
from service.settings import Settings
from service.store.segments import Upload
from worker.serving.preparer import EMPTY_WORLD_BYTES
from worker.serving.runner import Runner
from worker.serving.snapshot import unpack_segment
from worker.world import World


async def test_an_image_becomes_frame_0_and_a_path_the_frames_after_it(
    control: ControlPlane, settings: Settings
) -> None:
    session = await open_session(control)
    assert session.state == SessionState.WAITING
    path = await control.requests.append(
        session.id, Generate(poses=[pose(i) for i in range(10)], client_time_ms=5.0)
    )
    async with serving(control, settings):
        frames = await read_until(control, session.id, 10)
        await asyncio.sleep(0.05)
    assert [frame.frame for frame in frames] == list(range(11))
    assert [frame.pose for frame in frames[1:]] == [pose(i) for i in range(10)]
    assert [frame.pose_index for frame in frames[1:]] == list(range(10))
    assert frames[0].kind == "init" and frames[1].client_time_ms == 5.0
    assert {frame.media_type for frame in frames} == {"image/webp"}
    progress = await control.requests.get(session.id, path.id)
    assert (progress.state, progress.done, progress.total) == (RequestState.DONE, 10, 10)
    assert (progress.first_frame, progress.last_frame) == (1, 10)
    after = await control.sessions.get(session.id)
    assert after.next_frame == 11 and after.num_segments == 4 and after.num_points > 0
    assert after.weights == "noop@0" and after.state == SessionState.IDLE
    assert await control.workers.alive() == []  # it left in order


async def test_of_live_poses_the_newest_wins(control: ControlPlane, settings: Settings) -> None:
    session = await open_session(control)
    for i in range(20):
        live = LivePose(pose=pose(i), sequence=i, client_time_ms=float(i))
        await control.requests.append(session.id, live)
    async with serving(control, settings):
        frames = await read_until(control, session.id, 1)
        assert [frame.sequence for frame in frames] == [None, 19]
        await control.requests.append_live(session.id, LivePose(pose=pose(30), sequence=30))
        frames = await control.frames.read(session.id, after=1, wait_s=20)
    assert [(frame.frame, frame.sequence) for frame in frames] == [(2, 30)]


async def test_cancel_takes_effect_within_one_step(
    control: ControlPlane, settings: Settings
) -> None:
    session = await open_session(control)
    path = Generate(poses=[pose(i) for i in range(400)])
    long = await control.requests.append(session.id, path)
    queued = await control.requests.append(session.id, path)
    async with serving(control, settings):
        await read_until(control, session.id, 4)
        await control.requests.cancel(session.id, queued.id)
        before = (await control.sessions.get(session.id)).next_frame
        await control.requests.cancel(session.id, long.id)

        async def both_over() -> bool:
            return all(
                [(await control.requests.get(session.id, one.id)).state == "cancelled"
                 for one in (long, queued)]
            )  # fmt: skip

        await until(both_over)
        after = (await control.sessions.get(session.id)).next_frame
    assert after - before <= 2 * settings.chunk_frames
    assert (await control.requests.get(session.id, long.id)).cancel_requested is True


async def test_an_observation_shows_no_frame_and_informs_the_memory(
    control: ControlPlane, settings: Settings
) -> None:
    session = await open_session(control)
    depth = np.full((HEIGHT, WIDTH), 2.0, np.float32)
    blob = await control.segments.put_upload(session.id, Upload(picture(1).image, depth))
    await control.requests.append(session.id, Observe(blob=blob, pose=pose(40)))
    await control.requests.append(session.id, Generate(poses=[pose(40)]))
    async with serving(control, settings):
        frames = await read_until(control, session.id, 1)
    assert [frame.kind for frame in frames] == ["init", "generate"]
    kinds = [entry.kind for entry in await control.frames.manifest(session.id)]
    assert kinds == ["init", "observe", "generate"]
    assert frames[1].coverage > 0.5


@pytest.mark.parametrize("centre_m", [0.8, 7.5])
async def test_a_known_distance_scales_what_an_image_and_an_observation_leave(
    control: ControlPlane, settings: Settings, centre_m: float
) -> None:
    new = NewSession(seed=7, intrinsics=INTRINSICS)
    session = await control.sessions.create(new, picture(), scale_m=centre_m)
    blob = await control.segments.put_upload(session.id, picture(1))
    behind = [-1.0, 0, 0, 0, 0, 1, 0, 0, 0, 0, -1, 0, 0, 0, 0, 1]  # where no other picture looks
    await control.requests.append(session.id, Observe(blob=blob, pose=behind, scale_m=2 * centre_m))
    await control.requests.append(session.id, Generate(poses=[behind]))
    async with serving(control, settings):
        await read_until(control, session.id, 1)
    entries = await control.frames.manifest(session.id)
    for entry, expected_m in zip(entries, (centre_m, 2 * centre_m), strict=False):
        _, increment = unpack_segment(await control.segments.get(session.id, entry.id))
        ids, depth_m = increment.delta.ids.tolist(), increment.delta.depth
        rows, columns = HEIGHT // NoopBackbone.stride, WIDTH // NoopBackbone.stride
        middle = rows // 2 * columns + columns // 2
        at = max(i for i, one in enumerate(ids) if one % (rows * columns) == middle)
        assert float(depth_m[at]) == pytest.approx(expected_m, rel=0.05)


async def test_an_image_that_cannot_be_read_fails_its_session_alone(
    control: ControlPlane, settings: Settings
) -> None:
    bad, good = await open_session(control), await open_session(control)
    objects = control.segments.objects
    await objects.delete([one.path for one in await objects.below(f"sessions/{bad.id}")])
    path = await control.requests.append(bad.id, Generate(poses=[pose(1)]))
    async with serving(control, settings):
        await read_until(control, good.id, 0)

        async def failed() -> bool:
            return (await control.requests.get(bad.id, path.id)).state == "failed"

        await until(failed)
    session = await control.sessions.get(bad.id)
    assert session.state == SessionState.FAILED
    assert session.error and "not in the store" in session.error["detail"]
    first = await control.requests.get(bad.id, session.init_request)
    assert first.state == RequestState.FAILED and first.error == session.error


class PoisonBackbone(NoopBackbone):
    """Fails for cameras beyond 50 m, as a model out of memory would."""

    def depth(self, latents, cameras, hint, pictures=None):  # type: ignore[no-untyped-def]
        if (cameras.world_from_camera[..., 2, 3] > 50).any():
            raise torch.OutOfMemoryError("no memory for this one")
        return super().depth(latents, cameras, hint, pictures)


async def test_a_failing_step_costs_only_that_request(
    control: ControlPlane, settings: Settings
) -> None:
    sessions = [await open_session(control, seed) for seed in range(3)]
    far = await control.requests.append(sessions[0].id, Generate(poses=[pose(2000)]))
    near = [
        await control.requests.append(one.id, Generate(poses=[pose(1)])) for one in sessions[1:]
    ]
    again = await control.requests.append(sessions[0].id, Generate(poses=[pose(1)]))
    async with serving(control, settings, PoisonBackbone()):
        for session in sessions:
            await read_until(control, session.id, 1)
    bad = await control.requests.get(sessions[0].id, far.id)
    assert bad.state == RequestState.FAILED
    assert bad.error and "no memory for this one" in bad.error["detail"]
    assert (await control.requests.get(sessions[0].id, again.id)).first_frame == 1
    for session, path in zip(sessions[1:], near, strict=True):
        assert (await control.requests.get(session.id, path.id)).state == RequestState.DONE


async def test_a_world_survives_its_worker_and_its_eviction_bit_for_bit(
    control: ControlPlane, settings: Settings
) -> None:
    """One session walks undisturbed; its twin changes workers and is evicted by a rival."""
    steps = [pose(i) for i in range(1, 17)]
    one, twin, rival = [await open_session(control, seed) for seed in (3, 3, 4)]
    async with serving(control, settings):
        await control.requests.append(one.id, Generate(poses=steps))
        whole = await read_until(control, one.id, 16)
    tight = settings.model_copy(update={"resident_bytes": EMPTY_WORLD_BYTES})
    for part, last in ((steps[:8], 8), (steps[8:], 16)):
        await control.requests.append(twin.id, Generate(poses=part))
        await control.requests.append(rival.id, Generate(poses=part))
        async with serving(control, tight) as worker:
            parts = await read_until(control, twin.id, last)
            await read_until(control, rival.id, last)
            value = worker.metrics.registry.get_sample_value

            async def evicted(value: Callable[[str], float | None] = value) -> bool:
                return bool(value("mirage_evictions"))  # told with a heartbeat

            await until(evicted)
    assert [frame.image for frame in parts] == [frame.image for frame in whole]


async def test_a_world_that_fits_into_no_budget_is_refused_with_both_sizes(
    control: ControlPlane, settings: Settings
) -> None:
    session = await open_session(control)
    async with serving(control, settings):
        await read_until(control, session.id, 0)
    path = await control.requests.append(session.id, Generate(poses=[pose(1)]))
    tiny = settings.model_copy(update={"resident_bytes": 1000})
    async with serving(control, tiny):

        async def failed() -> bool:
            return (await control.requests.get(session.id, path.id)).state == "failed"

        await until(failed)
    error = (await control.requests.get(session.id, path.id)).error
    assert error and "1000 (MIRAGE_RESIDENT_BYTES)" in error["detail"]


async def test_deleting_a_session_stops_its_worker_and_leaves_nothing(
    control: ControlPlane, settings: Settings
) -> None:
    session = await open_session(control)
    await control.requests.append(session.id, Generate(poses=[pose(i) for i in range(400)]))
    async with serving(control, settings):
        await read_until(control, session.id, 4)
        await control.sessions.delete(session.id)
        with pytest.raises(SessionDeleted):
            await control.frames.read(session.id)

        async def gone() -> bool:
            objects = await control.segments.ids(session.id)
            names = await control.redis.keys(f"*{session.id}*")
            return not objects and len(names) == 1  # the tombstone

        await until(gone)


async def test_a_session_of_another_frame_size_is_refused_with_both_sizes(
    control: ControlPlane, settings: Settings
) -> None:
    new = NewSession(intrinsics=INTRINSICS.model_copy(update={"width": 80}))
    session = await control.sessions.create(new, picture())
    async with serving(control, settings):

        async def failed() -> bool:
            return (await control.sessions.get(session.id)).state == SessionState.FAILED

        await until(failed)
    error = (await control.sessions.get(session.id)).error
    assert error and "80 x 32" in error["detail"] and "64 x 32" in error["detail"]


async def test_sessions_share_steps_and_each_gets_its_frames(
    control: ControlPlane, settings: Settings
) -> None:
    sessions = [await open_session(control, seed) for seed in range(6)]
    for session in sessions:
        await control.requests.append(session.id, Generate(poses=[pose(i) for i in range(6)]))
    async with serving(control, settings), serving(control, settings):
        for session in sessions:
            frames = await read_until(control, session.id, 6)
            assert [frame.frame for frame in frames] == list(range(7))


async def test_a_draining_worker_hands_its_sessions_to_another(
    control: ControlPlane, settings: Settings
) -> None:
    session = await open_session(control)
    path = await control.requests.append(session.id, Generate(poses=[pose(i) for i in range(200)]))
    async with serving(control, settings):
        await read_until(control, session.id, 8)
    parted = await control.sessions.get(session.id)
    assert parted.state == SessionState.WAITING and 8 < parted.next_frame < 200
    async with serving(control, settings):
        frames = await read_until(control, session.id, 200)
    assert [frame.frame for frame in frames] == list(range(201))
    assert (await control.requests.get(session.id, path.id)).state == RequestState.DONE


async def test_a_store_that_fails_is_waited_out_and_said(
    control: ControlPlane, settings: Settings
) -> None:
    session = await open_session(control)
    segments = settings.data_dir / "segments" / "sessions" / session.id / "segments"
    segments.write_text("a file where the directory should be")
    async with serving(control, settings):

        async def complained() -> bool:
            alive = await control.workers.alive()
            return any("object of the store can't be stored" in one.problem for one in alive)

        await until(complained)
        assert (await control.sessions.get(session.id)).next_frame == 0
        segments.unlink()
        assert [frame.frame for frame in await read_until(control, session.id, 0)] == [0]


async def test_what_nobody_waits_for_any_more_is_tried_and_over(
    control: ControlPlane, settings: Settings
) -> None:
    session = await open_session(control)
    segments = settings.data_dir / "segments" / "sessions" / session.id / "segments"
    segments.write_text("a file where the directory should be")
    async with serving(control, settings):

        async def complains(is_so: bool) -> bool:
            return [bool(one.problem) for one in await control.workers.alive()] == [is_so]

        await until(lambda: complains(True))
        await control.sessions.delete(session.id)
        await until(lambda: complains(False))


async def test_a_session_that_was_deleted_is_no_lost_lease(
    control: ControlPlane, settings: Settings
) -> None:
    session = await open_session(control)
    async with serving(control, settings.model_copy(update={"linger_s": 60.0})) as worker:
        await read_until(control, session.id, 0)

        async def owns(count: int) -> bool:
            return [one.num_sessions for one in await control.workers.alive()] == [count]

        await until(lambda: owns(1))
        await control.sessions.delete(session.id)
        await until(lambda: owns(0))
        assert worker.metrics.registry.get_sample_value("mirage_leases_lost_total") == 0


class SecondBackbone(NoopBackbone):
    weights = "noop@1"


class GoingOnBackbone(SecondBackbone):
    continues = frozenset({"noop@0"})


async def test_worlds_go_on_with_weights_that_continue_theirs(
    control: ControlPlane, settings: Settings
) -> None:
    settings = settings.model_copy(update={"lease_s": 20.0})
    session = await open_session(control)
    async with serving(control, settings):
        await read_until(control, session.id, 0)

    async def walked(backbone: NoopBackbone) -> RequestState:
        asked = await control.requests.append(session.id, Generate(poses=[pose(1)]))
        async with serving(control, settings, backbone):
            return (await control.branches.wait(session.id, asked.id, PATIENCE_S)).state

    assert await walked(SecondBackbone()) is RequestState.FAILED
    assert await walked(GoingOnBackbone()) is RequestState.DONE
    assert (await control.sessions.get(session.id)).weights == "noop@1"
    assert await walked(SecondBackbone()) is RequestState.DONE
    assert await walked(NoopBackbone()) is RequestState.FAILED


async def test_what_this_worker_cannot_read_costs_only_its_session(
    control: ControlPlane, settings: Settings
) -> None:
    strange, other = await open_session(control, 1), await open_session(control, 2)
    async with serving(control, settings) as worker:
        for session in (strange, other):
            await read_until(control, session.id, 0)
        fields = {"id": "r1", "kind": "future", "body": '{"kind": "future"}', "camera": ""}
        entry = await control.redis.xadd(keys.log(strange.id), fields)
        for news in (b"\xff", f"{strange.id}\nmany".encode()):
            await control.redis.publish(keys.inbox(worker.id), news)
        await control.requests.append(strange.id, Generate(poses=[pose(0)]))
        await control.requests.append(other.id, Generate(poses=[pose(0)]))
        await read_until(control, other.id, 1)
        for _ in range(3):  # heard as it is asked: nothing that listens has ended
            await control.requests.append_live(other.id, LivePose(pose=pose(1)))
        await read_until(control, other.id, 2)
        assert (await control.sessions.get(strange.id)).next_frame == 1
        await control.redis.xdel(keys.log(strange.id), entry)
        assert len(await read_until(control, strange.id, 1)) == 2


@pytest.mark.parametrize("error", [KeyError("a defect"), MemoryError("no room")])
async def test_a_world_that_cannot_be_restored_is_tried_once(
    control: ControlPlane, settings: Settings, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    session = await open_session(control)
    async with serving(control, settings):
        await read_until(control, session.id, 0)
    tries = []

    def restore(runner: Runner, *_: object) -> World:
        tries.append(runner)
        raise error

    monkeypatch.setattr(Runner, "restore", restore)
    asked = await control.requests.append(session.id, Generate(poses=[pose(1)]))
    async with serving(control, settings.model_copy(update={"lease_s": 20.0})):

        async def is_over() -> bool:
            return (await control.requests.get(session.id, asked.id)).state.is_final

        await until(is_over)
    failed = (await control.requests.get(session.id, asked.id)).error
    assert failed and type(error).__name__ in failed["detail"]
    assert len(tries) == 1


async def test_a_world_whose_request_is_cancelled_while_it_is_restored_does_not_stay_pinned(
    control: ControlPlane, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await open_session(control)
    async with serving(control, settings):
        await read_until(control, session.id, 0)
    restoring, go_on, restore = threading.Event(), threading.Event(), Runner.restore

    def held_up(*args: Any) -> World:
        restoring.set()
        assert go_on.wait(PATIENCE_S)
        return restore(*args)

    monkeypatch.setattr(Runner, "restore", held_up)
    asked = await control.requests.append(session.id, Generate(poses=[pose(1)]))
    async with serving(control, settings.model_copy(update={"lease_s": 20.0})) as worker:
        assert await asyncio.to_thread(restoring.wait, PATIENCE_S)
        await control.requests.cancel(session.id, asked.id)

        async def is_over() -> bool:
            return (await control.requests.get(session.id, asked.id)).state.is_final

        await until(is_over)
        go_on.set()

        async def is_free() -> bool:
            return len(worker._residency) == 1 and worker._residency.pinned_bytes == 0

        await until(is_free)
