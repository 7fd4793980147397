"""Workers that are stopped past their lease and go on, and workers that are told to leave."""

from __future__ import annotations

import asyncio
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from bench.survival.fleet import Fleet, dead, fleet, send, until
from bench.survival.kills import STEP_S, spread
from bench.survival.walks import Walker, judge, walk_until, walkers


async def pauses(num_pauses: int, num_sessions: int = 4, lease_s: float = 0.5) -> dict[str, Any]:
    """The owner stops in the middle of a commit until another has taken over, then it goes on."""
    refused = 0
    async with fleet(lease_s=lease_s) as running:
        clients = await walkers(running.control, num_sessions)
        healthy, over = running.worker(step_s=STEP_S), asyncio.Event()
        walking = [asyncio.create_task(walk_until(one, over)) for one in clients]
        for i in range(num_pauses):
            sleeper = running.worker(f"after_put:{3 + 5 * i}:stop", STEP_S)
            await running.record(sleeper)
            send(healthy, signal.SIGTERM)
            await dead(healthy)
            healthy = running.worker(step_s=STEP_S)
            refused += await _sleep_through_a_lease(running, sleeper, healthy)
        over.set()
        await asyncio.gather(*walking)
        verdict = await judge(running.control, clients)
    return {"pauses": num_pauses, "commits_refused": refused, "lease_s": lease_s} | verdict


async def _sleep_through_a_lease(running: Fleet, sleeper: BaseProcess, other: BaseProcess) -> int:
    """How many commits of the sleeper were refused once it woke up."""
    name = (await running.record(sleeper)).id
    await until(lambda: asyncio.to_thread(_is_stopped, sleeper))
    owned = set(await running.leases(name))
    successor = (await running.record(other)).id

    async def taken_over() -> bool:
        return owned <= set(await running.leases(successor))

    await until(taken_over)
    send(sleeper, signal.SIGCONT)
    await asyncio.sleep(running.settings.lease_s)
    refused = await running.metric(sleeper, "mirage_commits_refused_total")
    send(sleeper, signal.SIGTERM)
    await dead(sleeper)
    return int(refused)


def _is_stopped(process: BaseProcess) -> bool:
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


async def drains(num_drains: int, num_sessions: int = 4, lease_s: float = 5.0) -> dict[str, Any]:
    """A new worker starts, the old one gets SIGTERM: sessions are handed over, nobody waits for a
    lease to end and no client sees an error.
    """
    exits: list[float] = []
    async with fleet(lease_s=lease_s) as running:
        clients = await walkers(running.control, num_sessions)
        pauses_s = Pauses(clients)
        worker, over = running.worker(step_s=STEP_S), asyncio.Event()
        walking = [asyncio.create_task(walk_until(one, over)) for one in clients]
        for _ in range(num_drains):
            await _all_advance(clients)
            old, worker = worker, running.worker(step_s=STEP_S)
            await running.record(worker)
            started_s = time.monotonic()
            send(old, signal.SIGTERM)
            await dead(old)
            exits.append(time.monotonic() - started_s)
            assert old.exitcode == 0, f"a drained worker ended with {old.exitcode}"
        await _all_advance(clients)
        over.set()
        await asyncio.gather(*walking)
        failed = [
            one.error
            for client in clients
            for one in await running.control.requests.list(client.session)
            if one.error
        ]
        verdict = await judge(running.control, clients)
    figures = {"drains": num_drains, "exit_s": spread(exits), "lease_s": lease_s}
    return figures | {"pause_s": spread(pauses_s.longest), "errors": len(failed)} | verdict


class Pauses:
    """The longest pause that each client saw between two frames."""

    def __init__(self, clients: list[Walker]) -> None:
        self._last_s: dict[str, float] = {}
        self._longest_s: dict[str, float] = {}
        for client in clients:
            client.on_frame = self._note

    @property
    def longest(self) -> list[float]:
        return list(self._longest_s.values())

    def _note(self, session: str, _: object) -> None:
        now_s = time.monotonic()
        pause_s = now_s - self._last_s.get(session, now_s)
        self._longest_s[session] = max(pause_s, self._longest_s.get(session, 0.0))
        self._last_s[session] = now_s


async def _all_advance(clients: list[Walker]) -> None:
    before = [len(client.images) for client in clients]

    async def advanced() -> bool:
        return all(len(one.images) > count + 4 for one, count in zip(clients, before, strict=True))

    await until(advanced)
