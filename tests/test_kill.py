"""A worker is killed with SIGKILL at named points of a step, another is started: the client notices
nothing but a pause.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.noop import noop_engine, start_worker
from service.control.frames import Frame
from service.control.plane import ControlPlane
from service.control.requests import Generate
from service.control.sessions import IDENTITY, Intrinsics, NewSession, Session
from service.settings import Settings
from service.store.segments import Upload
from worker.serving.faults import NoFaults
from worker.serving.loop import Worker
from worker.serving.runner import Encoding, Runner

LAST_FRAME = 24
INTRINSICS = Intrinsics(fx=50, fy=50, cx=32, cy=16, width=64, height=32)


@contextmanager
def worker_process(settings: Settings, fault: str = "") -> Iterator[BaseProcess]:
    process = start_worker(settings, fault)
    try:
        yield process
    finally:
        process.kill()
        process.join()


async def walk(control: ControlPlane) -> Session:
    """A session and a path of two requests that turns back, so that memory matters."""
    image = np.random.default_rng(0).integers(0, 255, (32, 64, 3), dtype=np.uint8)
    new = NewSession(seed=5, intrinsics=INTRINSICS)
    session = await control.sessions.create(new, Upload(image))
    steps = [*range(12), *range(12, 0, -1)]
    poses = [[*IDENTITY[:3], 0.1 * step, *IDENTITY[4:]] for step in steps]
    await control.requests.append(session.id, Generate(poses=poses[:10]))
    await control.requests.append(session.id, Generate(poses=poses[10:]))
    return session


async def read_all(control: ControlPlane, session: str) -> list[Frame]:
    """A client that reads the bus and resumes after the last number it saw."""
    frames: list[Frame] = []
    async with asyncio.timeout(90):
        while len(frames) <= LAST_FRAME:
            after = frames[-1].frame if frames else -1
            frames += await control.frames.read(session, after=after, wait_s=1.0, limit=3)
    return frames


def runner() -> Runner:
    return Runner(noop_engine(), Encoding())


async def final_world(control: ControlPlane, session: str) -> dict[str, Tensor]:
    """The World as its segments give it, with the state of its memory."""
    entries = await control.frames.manifest(session)
    segments = [await control.segments.get(session, entry.id) for entry in entries]
    world = runner().restore(await control.sessions.get(session), segments)
    assert world.latents is not None
    return {**world.memory.state(), "recent": world.latents}


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, Any]:
    """Filled by the first case: what a worker that nobody kills gives."""
    return {}


async def reference(control: ControlPlane, settings: Settings) -> dict[str, Any]:
    session = await walk(control)
    worker = Worker(control, settings, runner(), NoFaults())
    serving = asyncio.create_task(worker.run())
    frames = await read_all(control, session.id)
    worker.stop()
    await serving
    world = await final_world(control, session.id)
    return {"images": [frame.image for frame in frames], "world": world}


@pytest.mark.parametrize("point", ["before_put", "after_put", "after_commit", "before_ack"])
async def test_a_killed_worker_is_replaced_and_nobody_notices(
    control: ControlPlane, settings: Settings, point: str, undisturbed: dict[str, Any]
) -> None:
    settings = settings.model_copy(update={"lease_s": 0.5})
    if not undisturbed:
        undisturbed |= await reference(control, settings)
    session = await walk(control)
    with worker_process(settings, f"{point}:3") as victim:
        reading = asyncio.create_task(read_all(control, session.id))
        await asyncio.to_thread(victim.join, 60)
        assert victim.exitcode == -signal.SIGKILL
        assert not reading.done()
        with worker_process(settings):
            frames = await reading
    assert [frame.frame for frame in frames] == list(range(LAST_FRAME + 1))
    assert [frame.image for frame in frames] == undisturbed["images"]
    world, twin = await final_world(control, session.id), undisturbed["world"]
    assert world.keys() == twin.keys()
    for name, tensor in world.items():
        assert torch.equal(tensor, twin[name]), name
