"""Observations that wait in one session are encoded together, and nothing else is different."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from flaky_store import FlakyStore
from noop_worker import open_session, picture, pose, read_until, running, serving
from torch import Tensor

from bench.noop import HEIGHT, WIDTH, NoopBackbone, noop_engine
from service.control.frames import Frame
from service.control.plane import ControlPlane
from service.control.requests import Generate, Observe
from service.settings import Settings
from service.store.objects import sha256
from service.store.segments import Upload, blob_path, pack_upload
from worker.serving.faults import NoFaults
from worker.serving.loop import Worker
from worker.serving.runner import Encoding, Runner

NUM = 7
BACK = [pose(10 * i) for i in range(NUM)]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Nobody loses a lease here, however busy the machine is."""
    return settings.model_copy(update={"lease_s": 20.0})


class CountingBackbone(NoopBackbone):
    """Notes how many pictures are encoded at once; one that is black can't be."""

    def __init__(self) -> None:
        super().__init__()
        self.encoded: list[int] = []

    def encode(self, images: Tensor) -> Tensor:
        self.encoded.append(len(images))
        if (images == -1).flatten(1).all(1).any():
            raise ValueError("this one is black")
        return super().encode(images)


def fast(control: ControlPlane, settings: Settings, backbone: NoopBackbone) -> Worker:
    """A worker that encodes and computes in batches."""
    engine = noop_engine(backbone, deterministic=False)
    return Worker(control, settings, Runner(engine, Encoding()), NoFaults())


def upload_of(seed: int, *, black: bool = False) -> Upload:
    depth = np.full((HEIGHT, WIDTH), 2.0 + seed, np.float32)
    return Upload(np.zeros((HEIGHT, WIDTH, 3), np.uint8) if black else picture(seed).image, depth)


async def look(control: ControlPlane, session: str, seed: int, *, black: bool = False) -> str:
    """Ask for one observation; the request's id."""
    blob = await control.segments.put_upload(session, upload_of(seed, black=black))
    ask = await control.requests.append(session, Observe(blob=blob, pose=pose(10 * seed)))
    return ask.id


async def looked_at(control: ControlPlane) -> str:
    """A session with observations in its log, and a path that sees them."""
    session = (await open_session(control, 3)).id
    for seed in range(NUM):
        await look(control, session, seed)
    await control.requests.append(session, Generate(poses=BACK))
    return session


def images(frames: list[Frame]) -> list[bytes]:
    return [frame.image for frame in frames]


async def test_what_waits_is_encoded_together(control: ControlPlane, settings: Settings) -> None:
    session, backbone = await looked_at(control), CountingBackbone()
    async with running(fast(control, settings, backbone)):
        await read_until(control, session, NUM)
    # The first image has no depth, so its mirror image as well; a step takes as many as a chunk.
    assert backbone.encoded == [2, 4, 3]
    entries = await control.frames.manifest(session)
    assert [one.kind for one in entries] == ["init", *["observe"] * NUM, *["generate"] * 2]
    sizes = [one.num_points for one in entries[: NUM + 1]]
    assert sizes == sorted(set(sizes))  # each says how large the world was right then


async def test_the_world_is_as_if_they_had_come_one_by_one(
    control: ControlPlane, settings: Settings
) -> None:
    together, alone = await looked_at(control), await looked_at(control)
    async with serving(control, settings):
        many = await read_until(control, together, NUM)
    single = settings.model_copy(update={"chunk_frames": 1})
    async with serving(control, single):
        ones = await read_until(control, alone, NUM)
    assert images(many) == images(ones)


async def test_a_store_that_fails_in_the_middle_loses_and_repeats_nothing(
    control: ControlPlane, settings: Settings
) -> None:
    whole, twin = await looked_at(control), await looked_at(control)
    async with serving(control, settings):
        undisturbed = await read_until(control, whole, NUM)
    flaky = FlakyStore(settings.segments_url, {3, 8})
    async with serving(dataclasses.replace(control, segments=flaky), settings):
        frames = await read_until(control, twin, NUM)
    assert images(frames) == images(undisturbed)
    indices = [int(entry.id[:8]) for entry in await control.frames.manifest(twin)]
    assert indices == list(range(NUM + 3))


@pytest.mark.parametrize("how", ["lost", "black"])
async def test_one_that_cannot_be_done_fails_alone(
    control: ControlPlane, settings: Settings, how: str
) -> None:
    session = (await open_session(control, 3)).id
    asked = [await look(control, session, seed, black=seed == 2) for seed in range(4)]
    if how == "lost":
        blob = sha256(pack_upload(upload_of(2, black=True)))
        await control.segments.objects.delete([blob_path(session, blob)])
    await control.requests.append(session, Generate(poses=BACK[:1]))
    async with running(fast(control, settings, CountingBackbone())):
        await read_until(control, session, 1)
    progress = [await control.requests.get(session, one) for one in asked]
    assert [one.state for one in progress] == ["done", "done", "failed", "done"]
    assert progress[2].error
    assert ("black" if how == "black" else "not in the store") in progress[2].error["detail"]
