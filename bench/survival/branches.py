"""Forks of a long session: what one takes its owner, and what one takes a client."""

from __future__ import annotations

import itertools
import signal
import time
from typing import Any

from bench.survival.fleet import Fleet, dead, fleet, send
from bench.survival.walks import STEPS, Walker, percentile, pose, walkers
from service.control.branches import ForkIn
from service.control.leases import Leases
from service.control.requests import Generate, RequestState


async def forks(num_frames: int, rounds: int = 15) -> dict[str, Any]:
    """A session of that many segments of one frame each. `fork_s` is what its owner does: from the
    request, which it has read, to the commit; `asked_s` what a client waits for.
    """
    async with fleet(chunk_frames=1, lease_s=10.0) as running:
        worker = running.worker()
        (walker,) = await walkers(running.control, 1)
        steps = itertools.islice(itertools.cycle(STEPS), num_frames)
        path = Generate(poses=[pose(step) for step in steps])
        await running.control.requests.append(walker.session, path)
        await walker.read(1 + num_frames)
        asked_s = [await _asked(running, walker) for _ in range(rounds)]
        send(worker, signal.SIGTERM)
        await dead(worker)
        fork_s = await _owned(running, walker, rounds)
        segments = len(await running.control.frames.manifest(walker.session))
        root = running.settings.data_dir / "segments" / "sessions"
        folders = [one for one in root.iterdir() if one.name != walker.session]
        copied = sum(len(list(one.glob("segments/*"))) for one in folders)
    return {
        "segments": segments,
        "forks": len(folders),
        "segments_copied": copied,
        "fork_s": {"min": round(min(fork_s), 4), "p50": percentile(fork_s, 0.5, 4)},
        "asked_s": {"min": round(min(asked_s), 4), "p50": percentile(asked_s, 0.5, 4)},
    }


async def _asked(running: Fleet, walker: Walker) -> float:
    """Seconds from a client's request to its answer."""
    branches, started_s = running.control.branches, time.perf_counter()
    asked = await branches.fork(walker.session, ForkIn())
    done = await branches.wait(walker.session, asked.id, 60)
    assert done.state is RequestState.DONE, done
    return time.perf_counter() - started_s


async def _owned(running: Fleet, walker: Walker, rounds: int) -> list[float]:
    """Seconds that each fork takes this process, which owns the session now."""
    control, seconds = running.control, []
    leases = Leases(control.redis, "bench", 600.0, running.settings.frames_kept)
    lease = await leases.acquire(walker.session)
    assert lease is not None
    for _ in range(rounds):
        await control.branches.fork(walker.session, ForkIn())
        owned = await leases.load(walker.session)
        entry = owned.entries[0]
        started_s = time.perf_counter()
        change = await control.lineage.execute(
            owned.session, entry, owned.progress.get(entry.id), lease
        )
        await leases.commit(walker.session, lease, change)
        seconds.append(time.perf_counter() - started_s)
    return seconds
