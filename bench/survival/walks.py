"""Clients that walk there and back in worlds of fixed seeds, and what must be true of them whatever
happened to the processes in between.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from redis.exceptions import RedisError
from torch import Tensor

from bench.noop import noop_engine
from bench.survival.fleet import fleet
from service.control.frames import Frame
from service.control.plane import ControlPlane
from service.control.requests import Generate, Observe, new_request_id
from service.control.sessions import IDENTITY, Intrinsics, NewSession, Session
from service.store.segments import Upload
from worker.serving.faults import NoFaults
from worker.serving.loop import Worker
from worker.serving.runner import Encoding, Runner

INTRINSICS = Intrinsics(fx=50, fy=50, cx=32, cy=16, width=64, height=32)
STEPS = [*range(12), *range(12, 0, -1)]  # out and back, so that memory matters
PATIENCE_S = 120.0


def pose(step: float) -> list[float]:
    """A camera that moved `step` decimetres."""
    return [*IDENTITY[:3], 0.1 * step, *IDENTITY[4:]]


async def open_world(control: ControlPlane, seed: int) -> Session:
    return await control.sessions.create(
        NewSession(seed=seed, intrinsics=INTRINSICS), Upload(seed_picture(seed))
    )


def seed_picture(seed: int) -> NDArray[np.uint8]:
    """(32, 64, 3) noise."""
    return np.random.default_rng(seed).integers(0, 255, (32, 64, 3), dtype=np.uint8)


@dataclass
class Walker:
    """A client that asks for one walk after the other and notes every frame it gets."""

    control: ControlPlane
    session: str
    seed: int
    looks: int = 0  # observations before each walk
    num_walks: int = 0
    images: list[bytes] = field(default_factory=list)  # digests, by frame number
    wrong_numbers: int = 0
    on_frame: Callable[[str, Frame], None] | None = None

    async def walk(self) -> None:
        """One walk, until its last frame is here."""
        await self.ask()
        await self.read(1 + self.num_walks * len(STEPS))

    async def ask(self) -> None:
        """For one more walk, until that is acknowledged; asking again asks for the same."""
        for number in range(self.looks):
            seen = seed_picture(self.seed + 1000 * (self.num_walks + 1) + number)
            depth = np.full((32, 64), 2.0 + number, np.float32)
            blob = await self.control.segments.put_upload(self.session, Upload(seen, depth))
            await self._append(Observe(blob=blob, pose=pose(number)))
        await self._append(Generate(poses=[pose(step) for step in STEPS]))
        self.num_walks += 1

    async def _append(self, message: Observe | Generate) -> None:
        request = new_request_id()
        while True:
            try:
                await self.control.requests.append(self.session, message, request)
                break
            except (RedisError, OSError):
                await asyncio.sleep(0.1)

    async def read(self, count: int) -> None:
        """Until this many frames are here, resuming by number."""
        silent_since_s = time.monotonic()
        while len(self.images) < count:
            frames = await self._next()
            for frame in frames:
                self.take(frame)
            if frames:
                silent_since_s = time.monotonic()
            if time.monotonic() - silent_since_s > PATIENCE_S:
                raise TimeoutError(f"no frame of {self.session} for {PATIENCE_S} s")

    def take(self, frame: Frame) -> None:
        self.note(frame.frame, frame.image)
        if self.on_frame is not None:
            self.on_frame(self.session, frame)

    def note(self, number: int, image: bytes) -> None:
        self.wrong_numbers += number != len(self.images)
        self.images.append(hashlib.sha256(image).digest())

    async def _next(self) -> list[Frame]:
        after = len(self.images) - 1
        try:
            return await self.control.frames.read(self.session, after, wait_s=0.5, limit=8)
        except (RedisError, OSError):
            await asyncio.sleep(0.1)
            return []


async def walkers(control: ControlPlane, num: int, looks: int = 0) -> list[Walker]:
    sessions = [await open_world(control, seed) for seed in range(num)]
    return [Walker(control, session.id, seed, looks) for seed, session in enumerate(sessions)]


async def final_world(control: ControlPlane, session: str) -> dict[str, Tensor]:
    """The World as its segments give it, with the state of its memory."""
    runner = Runner(noop_engine(), Encoding())
    entries = await control.frames.manifest(session)
    segments = [await control.segments.get(session, entry.id) for entry in entries]
    world = runner.restore(await control.sessions.get(session), segments)
    assert world.latents is not None
    return {**world.memory.state(), "recent": world.latents}


async def judge(control: ControlPlane, found: Sequence[Walker]) -> dict[str, int]:
    """Numbers that must all be zero: against the manifests, and against undisturbed twins."""
    twins = await _undisturbed(found)
    verdict = {"frames_lost": 0, "frames_duplicated": 0, "frames_differing": 0}
    verdict |= {"worlds_differing": 0, "stale_writes": 0}
    for walker in found:
        twin_images, twin_world = twins[walker.seed]
        entries = await control.frames.manifest(walker.session)
        numbers = [
            number
            for entry in entries
            for number in range(entry.first_frame, entry.first_frame + entry.num_frames)
        ]
        expected = set(range(1 + walker.num_walks * len(STEPS)))
        verdict["frames_lost"] += len(expected - set(numbers)) + walker.wrong_numbers
        verdict["frames_duplicated"] += len(numbers) - len(set(numbers))
        pairs = zip(walker.images, twin_images, strict=True)
        verdict["frames_differing"] += sum(a != b for a, b in pairs)
        verdict["stale_writes"] += stale_writes([entry.id for entry in entries])
        world = await final_world(control, walker.session)
        same = world.keys() == twin_world.keys() and all(
            torch.equal(tensor, twin_world[name]) for name, tensor in world.items()
        )
        verdict["worlds_differing"] += not same
    return verdict


def stale_writes(segments: Sequence[str]) -> int:
    """Segments of a lease that another lease had followed already."""
    leases = [segment.split("-")[1] for segment in segments]
    ended: set[str] = set()
    stale = 0
    for before, lease in zip(["", *leases], leases, strict=False):
        if before != lease:
            ended.add(before)
        stale += lease in ended
    return stale


async def _undisturbed(
    found: Sequence[Walker],
) -> dict[int, tuple[list[bytes], dict[str, Any]]]:
    """Seed -> what a worker that nobody disturbs makes of as many walks."""
    async with fleet() as quiet:
        worker = Worker(
            quiet.control, quiet.settings, Runner(noop_engine(), Encoding()), NoFaults()
        )
        serving = asyncio.create_task(worker.run())
        made = {}
        for one in found:
            session = await open_world(quiet.control, one.seed)
            twin = Walker(quiet.control, session.id, one.seed, one.looks)
            for _ in range(one.num_walks):
                await twin.walk()
            made[one.seed] = (twin.images, await final_world(quiet.control, session.id))
        worker.stop()
        await serving
    return made


async def walk_until(walker: Walker, over: asyncio.Event) -> None:
    """At least one walk, one after the other; the last one is finished."""
    await walker.walk()
    while not over.is_set():
        await walker.walk()


def percentile(values: Sequence[float], share: float, digits: int = 3) -> float | None:
    """None without values."""
    if not values:
        return None
    return round(float(np.quantile(np.array(values), share)), digits)
