"""Whoever restarts workers is told which one hangs, and of nothing that passes."""

from __future__ import annotations

import asyncio
import time

import httpx
from noop_worker import serving

from service.control.plane import ControlPlane
from service.settings import Settings
from worker.serving.metrics import Metrics
from worker.serving.pulse import Pulse


def answer(pulse: Pulse, path: str = "/livez") -> httpx.Response:
    metrics = Metrics()
    metrics.pulse = pulse
    return httpx.get(f"http://127.0.0.1:{metrics.serve('127.0.0.1', 0)}{path}", trust_env=False)


def test_a_worker_that_turns_is_alive() -> None:
    pulse = Pulse()
    with pulse.stepping():
        said = answer(pulse)
    assert (said.status_code, said.text) == (200, "alive\n")
    assert "mirage_queue_depth" in answer(pulse, "/metrics").text


def test_a_loop_that_stands_still_is_told() -> None:
    pulse = Pulse(loop_s=0.01)
    time.sleep(0.02)
    said = answer(pulse)
    assert said.status_code == 503 and "event loop" in said.text
    pulse = Pulse(loop_s=60)
    pulse.turned()
    assert pulse.problem() == ""


def test_a_step_that_never_ends_is_told_and_one_that_ended_is_not() -> None:
    pulse = Pulse(step_s=0.01)
    with pulse.stepping():
        time.sleep(0.02)
        said = answer(pulse)
    assert said.status_code == 503 and "step" in said.text
    assert pulse.problem() == ""


async def test_a_worker_at_rest_keeps_its_pulse(control: ControlPlane, settings: Settings) -> None:
    async with serving(control, settings) as worker:
        worker.metrics.pulse._turned_s -= 1000  # as after a long standstill
        assert worker.metrics.pulse.problem()
        async with asyncio.timeout(30):
            while worker.metrics.pulse.problem():  # noqa: ASYNC110 - what a probe does
                await asyncio.sleep(0.05)
