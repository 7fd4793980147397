"""Many sessions: thousands that come, walk one chunk and are abandoned; hundreds that stay while a
few are at work.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import torch

from bench.noop import noop_engine
from bench.survival.fleet import Fleet, fleet, until
from bench.survival.walks import INTRINSICS, Walker, open_world, pose, walkers
from bench.usage import cpu_s, resident_bytes
from service.control.requests import Generate
from service.local.embedded import free_port
from worker.serving.preparer import EMPTY_WORLD_BYTES
from worker.serving.runner import Encoding, Runner, cameras, world_bytes

AT_ONCE = 16


async def abandoned(num_sessions: int, baseline: int, budget: int = 200) -> dict[str, Any]:
    """Sessions that walk one chunk and never come back: memory stays flat, nothing is left.

    `baseline`: after how many sessions the worker's memory is taken as what it should stay at;
    `budget`: how many worlds there is room for.
    """
    room_bytes = budget * _bytes_after_one_chunk() + EMPTY_WORLD_BYTES
    limits: dict[str, Any] = {
        "max_sessions": num_sessions + 1,
        "session_idle_s": 20.0,
        "linger_s": 0.0,
    }
    port = free_port()
    async with fleet(**limits) as running:
        worker = running.worker(resident_bytes=room_bytes)
        assert worker.pid is not None
        running.gateway(port)
        await until(lambda: _ready(port))
        rss, unready, started_s = {}, 0, time.monotonic()
        for first in range(0, num_sessions, AT_ONCE):
            count = min(AT_ONCE, num_sessions - first)
            await asyncio.gather(*(_visit(running, first + i) for i in range(count)))
            done = first + count
            if done >= baseline and (done - baseline) % (AT_ONCE * 10) < AT_ONCE:
                rss[done] = resident_bytes(worker.pid)
                unready += not await _ready(port)
        spent_s = time.monotonic() - started_s
        evictions = int(await running.metric(worker, "mirage_evictions"))
        left = await _left_after_expiry(running)
    first_rss, *_, last_rss = [*rss.values(), *rss.values()]
    return {
        "sessions": num_sessions,
        "sessions_per_s": round(num_sessions / spent_s, 1),
        "rss_growth": round(last_rss / first_rss - 1, 4),
        "rss_worst_growth": round(max(rss.values()) / first_rss - 1, 4),
        "rss_bytes": last_rss,
        "evictions": evictions,
        "unready": unready,
        **left,
    }


async def _visit(running: Fleet, seed: int) -> None:
    control = running.control
    session = await open_world(control, seed)
    path = Generate(poses=[pose(i) for i in range(running.settings.chunk_frames)])
    await control.requests.append(session.id, path)
    await Walker(control, session.id, seed).read(1 + len(path.poses))


async def _left_after_expiry(running: Fleet) -> dict[str, int]:
    """Files and keys that are left of sessions once all have expired."""
    root = running.settings.data_dir / "segments" / "sessions"

    async def gone() -> bool:
        return not await running.control.redis.zcard("mirage:expiry") and not _files(root)

    await until(gone, seconds=600)
    redis = running.control.redis
    keys = [key async for key in redis.scan_iter(match="*{s*", count=1000)]
    tombstones = [key for key in keys if await redis.hget(key, "state") == b"deleted"]
    return {"files_left": _files(root), "keys_left": len(keys) - len(tombstones)}


def _files(root: Path) -> int:
    return sum(len(names) for _, _, names in os.walk(root))  # which may vanish meanwhile


async def _ready(port: int) -> bool:
    async with httpx.AsyncClient(trust_env=False) as http:
        try:
            return (await http.get(f"http://127.0.0.1:{port}/readyz")).status_code == 200
        except httpx.TransportError:
            return False


def _bytes_after_one_chunk() -> int:
    engine = noop_engine()
    world, image = engine.open(0), torch.zeros(32, 64, 3, dtype=torch.uint8)
    engine.observe(world, image, cameras(INTRINSICS, [pose(0)]))
    engine.step([world], [cameras(INTRINSICS, [pose(i) for i in range(4)])])
    return world_bytes(world)


async def resident(
    num_resident: int, num_active: int, step_s: float = 0.05, rounds: int = 12
) -> dict[str, Any]:
    """Frames per second of a few active sessions, alone, and of as many in equal worlds among many
    that rest in memory; and what a frame costs their worker.
    """
    limits: dict[str, Any] = {"linger_s": 600.0, "lease_s": 5.0, "max_batch": num_active}
    async with fleet(**limits, deterministic=False) as running:  # batches are computed together
        worker = running.worker(step_s=step_s)
        assert worker.pid is not None
        first = await walkers(running.control, num_active)
        await _round(first, worker.pid)  # what is loaded once
        alone = [await _round(first, worker.pid) for _ in range(rounds)]
        crowd = await walkers(running.control, num_resident - 2 * num_active)
        for start in range(0, len(crowd), AT_ONCE):
            await asyncio.gather(*(one.walk() for one in crowd[start : start + AT_ONCE]))
        second = await walkers(running.control, num_active)  # as old as the first were: worlds grow
        await _round(second, worker.pid)
        among = [await _round(second, worker.pid) for _ in range(rounds)]
        await until(lambda: _holds(running, num_resident))
        steps = await running.metric(worker, "mirage_batch_sessions_count")
        stepped = await running.metric(worker, "mirage_batch_sessions_sum")
    return {
        "resident": num_resident,
        "active": num_active,
        "sessions_per_step": round(stepped / steps, 1),
        "frames_per_s_alone": round(1 / min(alone).wall_s, 1),
        "frames_per_s_among": round(1 / min(among).wall_s, 1),
        "ratio": round(min(alone).wall_s / min(among).wall_s, 3),
        "cpu_ms_alone": round(1e3 * min(one.cpu_s for one in alone), 3),
        "cpu_ms_among": round(1e3 * min(one.cpu_s for one in among), 3),
    }


async def _holds(running: Fleet, count: int) -> bool:
    """Whether the worker, which says so now and then, holds so many sessions."""
    (record,) = await running.control.workers.alive()
    return record.num_sessions == count


class PerFrame(NamedTuple):
    wall_s: float
    cpu_s: float  # of the worker


async def _round(active: Sequence[Walker], pid: int) -> PerFrame:
    """What one walk of each takes."""
    before = sum(len(one.images) for one in active)
    started_s, used_s = time.monotonic(), cpu_s(pid)
    await asyncio.gather(*(one.walk() for one in active))
    frames = sum(len(one.images) for one in active) - before
    return PerFrame((time.monotonic() - started_s) / frames, (cpu_s(pid) - used_s) / frames)


async def restores(num_walks: int, rounds: int = 5) -> dict[str, Any]:
    """Bringing back an evicted World, from its segments in the store to the device."""
    async with fleet() as running:
        running.worker()
        (walker,) = await walkers(running.control, 1)
        for _ in range(num_walks):
            await walker.walk()
        control, session = running.control, await running.control.sessions.get(walker.session)
        runner, seconds = Runner(noop_engine(), Encoding()), []
        for _ in range(rounds):
            started_s = time.perf_counter()
            entries = await control.frames.manifest(session.id)
            segments = await asyncio.gather(
                *(control.segments.get(session.id, entry.id) for entry in entries)
            )
            world = runner.restore(session, segments)
            seconds.append(time.perf_counter() - started_s)
    size = sum(map(len, segments))
    return {
        "segments": len(segments),
        "segment_bytes": size,
        "world_bytes": world_bytes(world),
        "restore_s": round(min(seconds), 4),
        "bound_s": round(0.1 + size / 1e9, 4),
    }
