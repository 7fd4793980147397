"""The loop with a real Valkey, a real store, the real engine and a fake backbone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import numpy as np
import pytest
import torch
from fakes import HEIGHT, WIDTH, FakeBackbone, fake_engine

from service.control import ControlPlane
from service.errors import SessionDeleted
from service.frames import Frame
from service.requests import Generate, LivePose, Observe, RequestState
from service.segments import Upload
from service.sessions import IDENTITY, Intrinsics, NewSession, Session, SessionState
from service.settings import Settings
from worker.faults import NoFaults
from worker.loop import Worker
from worker.runner import Encoding, Runner

INTRINSICS = Intrinsics(fx=50, fy=50, cx=32, cy=16, width=WIDTH, height=HEIGHT)


def picture(seed: int = 0) -> Upload:
    image = np.random.default_rng(seed).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    return Upload(image)


def pose(step: int) -> list[float]:
    """A camera that moves 5 cm per step along z."""
    return [*IDENTITY[:11], 0.05 * step, *IDENTITY[12:]]


@asynccontextmanager
async def serving(
    control: ControlPlane, settings: Settings, backbone: FakeBackbone | None = None
) -> AsyncIterator[Worker]:
    worker = Worker(control, settings, Runner(fake_engine(backbone), Encoding()), NoFaults())
    task = asyncio.create_task(worker.run())
    try:
        yield worker
    finally:
        worker.stop()
        await asyncio.wait_for(task, 10)


async def open_session(control: ControlPlane, seed: int = 7, **kwargs: object) -> Session:
    new = NewSession(seed=seed, intrinsics=INTRINSICS, **kwargs)
    return await control.sessions.create(new, picture())


async def read_until(control: ControlPlane, session: str, last: int) -> list[Frame]:
    frames: list[Frame] = []
    while not frames or frames[-1].frame < last:
        after = frames[-1].frame if frames else -1
        more = await control.frames.read(session, after=after, wait_s=5.0)
        assert more, "no frame came for 5 s"
        frames += more
    return frames


async def until(condition: Callable[[], object]) -> None:
    for _ in range(200):
        if await condition():  # type: ignore[misc]
            return
        await asyncio.sleep(0.02)
    raise AssertionError("did not happen")


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
    assert after.weights == "fake@0" and after.state == SessionState.IDLE
    assert await control.workers.alive() == []  # it left in order
