"""A worker whose model costs nothing (bench.noop), within a test, and small sessions for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import numpy as np

from bench.noop import HEIGHT, WIDTH, NoopBackbone, noop_engine
from service.control.frames import Frame
from service.control.plane import ControlPlane
from service.control.sessions import IDENTITY, Intrinsics, NewSession, Session
from service.settings import Settings
from service.store.segments import Upload
from worker.serving.faults import NoFaults
from worker.serving.loop import Worker
from worker.serving.runner import Encoding, Runner

PATIENCE_S = 60.0  # of what takes milliseconds on a quiet machine
INTRINSICS = Intrinsics(fx=50, fy=50, cx=32, cy=16, width=WIDTH, height=HEIGHT)


def picture(seed: int = 0) -> Upload:
    image = np.random.default_rng(seed).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    return Upload(image)


def pose(step: int) -> list[float]:
    """A camera that moves 5 cm per step along z."""
    return [*IDENTITY[:11], 0.05 * step, *IDENTITY[12:]]


@asynccontextmanager
async def serving(
    control: ControlPlane, settings: Settings, backbone: NoopBackbone | None = None
) -> AsyncIterator[Worker]:
    worker = Worker(control, settings, Runner(noop_engine(backbone), Encoding()), NoFaults())
    async with running(worker):
        yield worker


@asynccontextmanager
async def running(worker: Worker) -> AsyncIterator[None]:
    task = asyncio.create_task(worker.run())
    try:
        yield
    finally:
        worker.stop()
        await asyncio.wait_for(task, PATIENCE_S)


async def open_session(control: ControlPlane, seed: int = 7, **kwargs: object) -> Session:
    new = NewSession(seed=seed, intrinsics=INTRINSICS, **kwargs)
    return await control.sessions.create(new, picture())


async def read_until(control: ControlPlane, session: str, last: int) -> list[Frame]:
    frames: list[Frame] = []
    async with asyncio.timeout(PATIENCE_S):
        while not frames or frames[-1].frame < last:
            after = frames[-1].frame if frames else -1
            frames += await control.frames.read(session, after=after, wait_s=5.0)
    return frames


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not await condition():  # type: ignore[misc]  # noqa: ASYNC110 it is in others' hands
            await asyncio.sleep(0.02)
