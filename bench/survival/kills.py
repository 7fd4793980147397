"""Workers are killed with SIGKILL at named points and at any time, while clients walk."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from typing import Any, get_args

from bench.survival.fleet import Fleet, dead, fleet, until
from bench.survival.walks import judge, percentile, walk_until, walkers
from service.control.frames import Frame
from worker.serving.faults import Point

STEP_S = 0.02


class Failovers:
    """How long sessions of dead workers stood still after their lease had ended."""

    def __init__(self) -> None:
        self._due: dict[str, tuple[float, float]] = {}  # session -> (death, end of its lease)
        self.seconds: list[float] = []
        self.gaps: list[float] = []

    def died(self, leases: dict[str, float], at_s: float) -> None:
        for session, left_s in leases.items():
            self._due[session] = (at_s, time.time() + max(0.0, left_s))

    def frame(self, session: str, frame: Frame) -> None:
        """Called for each frame; the first made after its owner's death ends the wait."""
        death_s, end_s = self._due.get(session, (float("inf"), 0.0))
        if frame.created_s > death_s:
            del self._due[session]
            self.seconds.append(max(0.0, time.time() - end_s))
            self.gaps.append(time.time() - death_s)


class Mortality:
    """Keeps so many workers alive and lets each die in its own way."""

    def __init__(self, running: Fleet, failovers: Failovers, seed: int) -> None:
        self._fleet, self._failovers = running, failovers
        self._random = random.Random(seed)
        self.deaths: dict[str, int] = {}  # by point

    async def keep_dying(self, num_kills: int, num_workers: int) -> None:
        """Until so many have died; then healthy ones take over."""
        lives = [asyncio.create_task(self._one_life()) for _ in range(num_workers)]
        pending = set(lives)
        started = num_workers
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for one in done:
                one.result()
                if started < num_kills:
                    started += 1
                    pending.add(asyncio.create_task(self._one_life()))

    async def _one_life(self) -> None:
        fate = self._random.choice([*get_args(Point), "any time"])
        fault = "" if fate == "any time" else f"{fate}:{self._random.randint(1, 20)}"
        process = self._fleet.worker(fault, STEP_S)
        identity = (await self._fleet.record(process)).id
        if fate == "any time":
            await until(lambda: self._fleet.leases(identity))
            await asyncio.sleep(self._random.uniform(0.0, 0.6))
            process.kill()
        await dead(process)
        died_s = time.time()
        self._failovers.died(await self._fleet.leases(identity), died_s)
        self.deaths[fate] = self.deaths.get(fate, 0) + 1


async def kills(
    num_kills: int, num_sessions: int = 8, num_workers: int = 3, lease_s: float = 1.0, seed: int = 0
) -> dict[str, Any]:
    """Figures of `num_kills` deaths; what must be zero is zero if nothing was lost."""
    failovers = Failovers()
    async with fleet(lease_s=lease_s) as running:
        clients = await walkers(running.control, num_sessions, looks=2)
        mortality, over = Mortality(running, failovers, seed), asyncio.Event()
        for client in clients:
            client.on_frame = failovers.frame
        walking = [asyncio.create_task(walk_until(one, over)) for one in clients]
        await mortality.keep_dying(num_kills, num_workers)
        running.worker(step_s=STEP_S)  # the survivor
        over.set()
        await asyncio.gather(*walking)
        verdict = await judge(running.control, clients)
    return {
        "kills": sum(mortality.deaths.values()),
        "kills_by_point": mortality.deaths,
        "sessions": num_sessions,
        "workers": num_workers,
        "lease_s": lease_s,
        "frames": sum(len(one.images) for one in clients),
        **verdict,
        "failovers": len(failovers.seconds),
        "failover_s": spread(failovers.seconds),
        "pause_s": spread(failovers.gaps),
    }


def spread(seconds: Sequence[float]) -> dict[str, float | None]:
    return {"p50": percentile(seconds, 0.5), "max": percentile(seconds, 1.0)}
