"""Chunks are published beside the next step, in order, one ahead at most; a failure costs only what
was not committed.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from flaky_store import FlakyStore
from noop_worker import open_session, pose, read_until, running, serving, until

from bench.noop import HEIGHT, WIDTH, NoopBackbone
from service.control.plane import ControlPlane
from service.control.requests import Generate, RequestState, Rewind
from service.errors import StoreDown
from service.settings import Settings
from service.store.segments import SegmentStore
from worker.engine import Engine, EngineConfig
from worker.serving import publisher
from worker.serving.faults import NoFaults
from worker.serving.loop import NEWS_WAIT_S, Worker
from worker.serving.runner import Encoding, Runner


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """A lease that a busy machine does not lose: chunks are counted here."""
    return settings.model_copy(update={"lease_s": 20.0})


PATH = Generate(poses=[pose(i) for i in range(24)])


class CountingBackbone(NoopBackbone):
    """Counts the steps that began."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0

    def denoise(self, condition, noise):  # type: ignore[no-untyped-def]
        self.steps += 1
        return super().denoise(condition, noise)


class WaitingStore(SegmentStore):
    """Stores a chunk only once the step after it has begun."""

    def __init__(self, url: str, backbone: CountingBackbone, num_chunks: int) -> None:
        super().__init__(url)
        self._backbone, self._num_chunks = backbone, num_chunks
        self.puts, self.most_ahead = 0, 0

    async def put_all(self, segments: Sequence[tuple[str, str, bytes]]) -> list[StoreDown | None]:
        chunk, self.puts = self.puts, self.puts + 1  # 0: the first image
        async with asyncio.timeout(60):
            while 0 < chunk < self._num_chunks and self._backbone.steps <= chunk:  # noqa: ASYNC110
                await asyncio.sleep(0.002)
        self.most_ahead = max(self.most_ahead, self._backbone.steps - chunk)
        await asyncio.sleep(0.02)  # more steps begin now, if any may
        self.most_ahead = max(self.most_ahead, self._backbone.steps - chunk)
        return await super().put_all(segments)


async def test_the_next_step_does_not_wait_for_the_store_and_one_chunk_runs_ahead(
    control: ControlPlane, settings: Settings
) -> None:
    session, backbone = await open_session(control), CountingBackbone()
    store = WaitingStore(settings.segments_url, backbone, num_chunks=6)
    await control.requests.append(session.id, PATH)
    async with serving(dataclasses.replace(control, segments=store), settings, backbone):
        frames = await read_until(control, session.id, 24)
    assert [frame.frame for frame in frames] == list(range(25))
    assert store.most_ahead == 1


class BrokenBackbone(NoopBackbone):
    """Opens Worlds and can do nothing in them."""

    def denoise(self, condition, noise):  # type: ignore[no-untyped-def]
        raise RuntimeError("broken")


async def test_what_ran_ahead_of_a_failed_put_is_discarded_and_done_again(
    control: ControlPlane, settings: Settings
) -> None:
    one, twin = await open_session(control, 3), await open_session(control, 3)
    await control.requests.append(one.id, PATH)
    async with serving(control, settings):
        whole = await read_until(control, one.id, 24)
    await control.requests.append(twin.id, PATH)
    flaky = FlakyStore(settings.segments_url, {3, 4, 7})
    async with serving(dataclasses.replace(control, segments=flaky), settings) as worker:
        parts = await read_until(control, twin.id, 24)
    assert [frame.image for frame in parts] == [frame.image for frame in whole]
    indices = [int(entry.id[:8]) for entry in await control.frames.manifest(twin.id)]
    assert indices == list(range(7))
    value = worker.metrics.registry.get_sample_value
    assert value("mirage_dependency_errors_total", {"of": "store"}) == 3


class FullStore(SegmentStore):
    """Has no room for the first segments; it takes long to say so, and small objects fit."""

    def __init__(self, url: str, fails: int) -> None:
        super().__init__(url)
        self._fails = fails
        self.asked_s, self.told_s = list[float](), list[float]()

    async def put_all(self, segments: Sequence[tuple[str, str, bytes]]) -> list[StoreDown | None]:
        self.asked_s.append(time.monotonic())
        await asyncio.sleep(2 * NEWS_WAIT_S)  # the loop looks around meanwhile, with nothing to do
        self.told_s.append(time.monotonic())
        if len(self.told_s) <= self._fails:
            return [StoreDown("No space left on device") for _ in segments]
        return await super().put_all(segments)


async def test_a_store_that_is_full_is_tried_ever_more_slowly(
    control: ControlPlane, settings: Settings
) -> None:
    session = await open_session(control)
    store = FullStore(settings.segments_url, fails=3)
    async with serving(dataclasses.replace(control, segments=store), settings):
        await read_until(control, session.id, 0)
    pauses_s = [asked - told for told, asked in zip(store.told_s, store.asked_s[1:], strict=False)]
    for pause_s, expected_s in zip(pauses_s, (0.2, 0.4, 0.8), strict=True):
        assert pause_s > 0.98 * expected_s


class TightBackbone(NoopBackbone):
    """Has memory for two sessions at a time."""

    def denoise(self, condition, noise):  # type: ignore[no-untyped-def]
        if len(noise) > 2:
            raise torch.OutOfMemoryError("no memory for so many")
        return super().denoise(condition, noise)


async def test_running_out_of_memory_costs_a_step_and_no_request(
    control: ControlPlane, settings: Settings
) -> None:
    sessions = [await open_session(control, seed) for seed in range(4)]
    async with serving(control, settings):
        for session in sessions:
            await read_until(control, session.id, 0)
    paths = [await control.requests.append(one.id, PATH) for one in sessions]
    fast = settings.model_copy(update={"max_batch": 4})
    engine = Engine(TightBackbone(), EngineConfig(height=HEIGHT, width=WIDTH))
    worker = Worker(control, fast, Runner(engine, Encoding()), NoFaults())
    async with running(worker):
        for session in sessions:
            await read_until(control, session.id, 24)

        async def all_done() -> bool:
            found = [
                await control.requests.get(one.id, path.id)
                for one, path in zip(sessions, paths, strict=True)
            ]
            return all(one.state == RequestState.DONE for one in found)

        await until(all_done)
    assert worker.metrics.registry.get_sample_value("mirage_out_of_memory_total", {}) >= 1


async def test_a_world_that_is_being_rendered_does_not_expire(
    control: ControlPlane, settings: Settings
) -> None:
    session = await open_session(control)
    await control.requests.append(session.id, PATH)
    asked = await control.sessions.get(session.id)
    async with serving(control, settings):
        await read_until(control, session.id, 24)
    now = await control.sessions.get(session.id)
    assert asked.expires_s < now.expires_s
    assert now.expires_s - now.touched_s == pytest.approx(settings.session_idle_s)


async def test_cameras_of_one_world_see_what_was_made_for_the_other(
    control: ControlPlane, settings: Settings
) -> None:
    session = await open_session(control)
    back = [pose(-40 - i) for i in range(4)]
    for camera in range(2):
        await control.requests.append(session.id, Generate(poses=back, camera=camera))
    async with serving(control, settings):
        frames = await read_until(control, session.id, 8)
    assert [frame.frame for frame in frames] == list(range(1 + 8))
    assert [frame.camera for frame in frames[1:]] == [0] * 4 + [1] * 4
    assert frames[5].coverage > frames[1].coverage  # what camera 0 was shown is remembered
    last = [await control.frames.last(session.id, camera) for camera in range(2)]
    assert [one.frame for one in last] == [4, 8]


@pytest.mark.parametrize(
    ("message", "level"),
    [
        (Rewind(snapshot="never taken"), "warning"),  # the client's mistake
        (Generate(poses=[pose(1)], camera=1), "error"),
    ],
)
async def test_only_our_own_failures_are_errors_in_the_log(
    control: ControlPlane,
    settings: Settings,
    logs_of: Callable[..., list[Any]],
    message: Rewind | Generate,
    level: str,
) -> None:
    session, logs = await open_session(control), logs_of(publisher)
    async with serving(control, settings, BrokenBackbone()):
        await read_until(control, session.id, 0)
        request = await control.requests.append(session.id, message)

        async def failed() -> bool:
            return (await control.requests.get(session.id, request.id)).state == "failed"

        await until(failed)
    assert [one["log_level"] for one in logs if one["event"] == "request failed"] == [level]
