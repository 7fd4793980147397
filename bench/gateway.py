"""What the service adds to a model: pose-to-frame latency, rates and CPU per frame, with a worker
whose model costs nothing.

`python -m bench.gateway --json out/gateway.json`: a real Valkey, gateway and worker (`bench.noop
--still`), one-frame chunks, a local store without fsync; sessions walk at a fixed rate from this
process. Latency is from just before a pose is sent to the last byte of its frame. The rate rises
until the bar no longer holds, or, where it does not hold at the first, falls until it does. The
same clients ask bare echo servers, so that the overhead is a ratio. Segments lie in memory
(/dev/shm) unless `--folder` says where: ext4 makes a new file in 10 us, but in 300 us beside
thousands deleted in the last half minute. All processes share this machine's cores: `taskset -c
0,1` makes them two.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import uvloop
from PIL import Image
from redis.asyncio import Redis

from bench.servers import Server, echo, service
from bench.usage import cpu_of_all, profile, redis_counters
from bench.walkers import Run, Tally, walk
from service.runtime import settle_heap

BARS_MS = {"websocket": 15.0, "websocket_json": 15.0, "grpc": 20.0}  # of the 99th percentile
LOWER_HZ = (7.0, 5.0, 3.0, 2.0, 1.0)
DELIVERED = 0.99  # of the poses; fewer means that the service can't keep up
AT_ONCE = 8  # REST calls
MEMORY = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path("out")


async def measure(
    server: Server, transport: str, ids: list[str], rate_hz: float, args: argparse.Namespace
) -> dict[str, Any]:
    """One run: walkers connect, warm up, are measured and leave."""
    run, tally = Run(), Tally()
    walkers = [await server.connect(transport, session, run) for session in ids]
    walking = asyncio.create_task(walk(walkers, rate_hz, args.warm_up_s + args.duration_s + 0.5))
    await asyncio.sleep(args.warm_up_s)
    profiling = await profile(server.pids, args.duration_s, args.profile)
    counters, cpu = await _counters(server), cpu_of_all(server.pids)
    run.tally, started_s = tally, time.perf_counter()
    await asyncio.sleep(args.duration_s)
    run.tally, spent_s = None, time.perf_counter() - started_s
    cpu = {name: now - cpu[name] for name, now in cpu_of_all(server.pids).items()}
    counters = {name: now - counters[name] for name, now in (await _counters(server)).items()}
    await asyncio.gather(walking, *(one.wait() for one in profiling))
    for walker in walkers:
        await walker.close()
    seen = {"transport": transport, "sessions": len(ids), "rate_hz": rate_hz}
    return seen | summary(tally, cpu, counters, spent_s)


async def _counters(server: Server) -> dict[str, int]:
    if not server.redis_url:
        return {}
    async with Redis.from_url(server.redis_url) as redis:
        return await redis_counters(redis)


def summary(
    tally: Tally, cpu_s: dict[str, float], counters: dict[str, int], spent_s: float
) -> dict[str, Any]:
    frames = max(1, len(tally.latencies_ms))
    per_frame = {name: count / frames for name, count in counters.items()}
    return {
        "frames_per_s": frames / spent_s,
        "delivered": frames / max(1, tally.sent),
        "p50_ms": percentile(tally.latencies_ms, 50),
        "p99_ms": percentile(tally.latencies_ms, 99),
        "max_ms": max(tally.latencies_ms, default=float("nan")),
        "client_late_p99_ms": percentile(tally.late_ms, 99),
        "cpu_ms_per_frame": {name: 1e3 * used / frames for name, used in cpu_s.items()}
        | {"all": 1e3 * sum(cpu_s.values()) / frames},
        "cores_used": sum(cpu_s.values()) / spent_s,
        "valkey_per_frame": per_frame,
        "image_bytes": tally.image_bytes / frames,
        "bytes_copied_per_frame": bytes_copied(per_frame, tally.image_bytes / frames),
        "unordered": tally.unordered,
        "errors": len(tally.errors),
        "first_error": tally.errors[0] if tally.errors else None,
    }


def bytes_copied(valkey: dict[str, float], image_bytes: float) -> float | None:
    """Across process boundaries, pose and frame: into Valkey and out of it, and to the client; the
    segment's file holds the frame once more (`segment_bytes` of the report).
    """
    return valkey["in_bytes"] + valkey["out_bytes"] + image_bytes if valkey else None


def percentile(values: list[float], rank: float) -> float:
    return float(np.percentile(values, rank)) if values else float("nan")


def holds(run: dict[str, Any]) -> bool:
    kept_up = run["delivered"] >= DELIVERED and not run["errors"] and not run["unordered"]
    return bool(kept_up and run["p99_ms"] <= BARS_MS[run["transport"]])


async def limits(
    server: Server, transport: str, ids: list[str], args: argparse.Namespace
) -> dict[str, Any]:
    """The highest rate that holds: rising rates, or falling ones if the first is too much."""
    runs: list[dict[str, Any]] = []

    async def holds_at(rate_hz: float) -> bool:
        runs.append(await measure(server, transport, ids, rate_hz, args))
        print_run(runs[-1])
        return holds(runs[-1])

    for rate_hz in args.rates:
        if not await holds_at(rate_hz) and not args.all:
            break
    for rate_hz in [rate for rate in LOWER_HZ if rate < args.rates[0]]:
        if any(map(holds, runs)) or await holds_at(rate_hz):
            break
    held = [run["rate_hz"] for run in runs if holds(run)]
    return {"bar_ms": BARS_MS[transport], "highest_rate_hz": max(held, default=0), "runs": runs}


async def per_second(
    num: int, call: Callable[[int], Awaitable[httpx.Response]]
) -> tuple[list[httpx.Response], float]:
    """Answers, and calls per second of AT_ONCE at a time."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> httpx.Response:
        async with gate:
            return (await call(number)).raise_for_status()

    started_s = time.perf_counter()
    answers = await asyncio.gather(*(one(number) for number in range(num)))
    return answers, num / (time.perf_counter() - started_s)


async def rest(server: Server, num: int) -> tuple[list[str], dict[str, float]]:
    """New sessions' ids, and the rates of creating and of inspecting them."""
    picture = io.BytesIO()
    Image.new("RGB", (128, 64), (120, 90, 60)).save(picture, "png")
    files = {"image": ("view.png", picture.getvalue())}
    async with httpx.AsyncClient(base_url=server.url, timeout=60.0) as client:
        created, creates_per_s = await per_second(
            num, lambda _: client.post("/v1/sessions", files=files, data={"memory": "null"})
        )
        ids = [answer.json()["id"] for answer in created]
        _, inspects_per_s = await per_second(
            5 * num, lambda number: client.get(f"/v1/sessions/{ids[number % num]}")
        )
    return ids, {"creates_per_s": creates_per_s, "inspects_per_s": inspects_per_s}


async def bare_rest(server: Server, num: int) -> dict[str, float]:
    """The same client against a server that does nothing."""
    async with httpx.AsyncClient(base_url=server.url, timeout=60.0) as client:
        _, creates_per_s = await per_second(num, lambda _: client.post("/item", content=bytes(500)))
        _, inspects_per_s = await per_second(5 * num, lambda _: client.get("/item"))
    return {"creates_per_s": creates_per_s, "inspects_per_s": inspects_per_s}


async def run(args: argparse.Namespace) -> dict[str, Any]:
    report: dict[str, Any] = {"cores": len(os.sched_getaffinity(0)), "load": os.getloadavg()}
    args.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=args.folder) as folder:
        async with service(Path(folder), args.max_batch) as server:
            ids, report["rest"] = await rest(server, args.sessions)
            for transport in args.transports:
                report[transport] = await limits(server, transport, ids, args)
            report["segment_bytes"] = segment_bytes(Path(folder))
    if not args.no_echo:
        async with echo() as server:
            report["bare_rest"] = await bare_rest(server, args.sessions)
            for transport in args.transports:
                bare = await measure(server, transport, ids, args.rates[0], args)
                print_run(bare, "bare ")
                report[f"bare_{transport}"] = bare
                report[f"over_bare_{transport}"] = over_bare(report[transport]["runs"][0], bare)
    return report


def segment_bytes(folder: Path) -> float:
    """Mean size of what one frame leaves in the store."""
    sizes = [one.stat().st_size for one in folder.rglob("*.safetensors")]
    return sum(sizes) / max(1, len(sizes))


def over_bare(ours: dict[str, Any], bare: dict[str, Any]) -> dict[str, float]:
    """How many times as long, and as much CPU of the server (gateway alone, and all of ours)."""
    cpu = ours["cpu_ms_per_frame"]
    floor = bare["cpu_ms_per_frame"]["echo"] or float("nan")  # too short to be seen
    return {
        "p50": ours["p50_ms"] / bare["p50_ms"],
        "p99": ours["p99_ms"] / bare["p99_ms"],
        "gateway_cpu": cpu["gateway"] / floor,
        "service_cpu": (cpu["all"] - cpu["client"]) / floor,
    }


def print_run(run: dict[str, Any], prefix: str = "") -> None:
    costs = " ".join(f"{part} {ms:.3f}" for part, ms in run["cpu_ms_per_frame"].items())
    print(
        f"{prefix}{run['transport']} {run['sessions']} x {run['rate_hz']:g}/s: p50 "
        f"{run['p50_ms']:.1f} p99 {run['p99_ms']:.1f} max {run['max_ms']:.1f} ms, "
        f"{run['delivered']:.1%} delivered, {run['unordered']} unordered, client late "
        f"{run['client_late_p99_ms']:.1f}; CPU ms/frame: {costs}; cores {run['cores_used']:.2f} "
        f"{run['first_error'] or ''}",
        flush=True,
    )


def main() -> None:
    args = parse()
    settle_heap()  # the client is not what is measured: no long collections
    report = uvloop.run(run(args))
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(report, indent=1) + "\n")
    print({name: value for name, value in report.items() if "runs" not in str(value)})


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.gateway", description=__doc__)
    parser.add_argument("--json", type=Path, default=Path("out/gateway.json"))
    parser.add_argument("--transports", nargs="+", default=list(BARS_MS), choices=list(BARS_MS))
    parser.add_argument("--sessions", type=int, default=100)
    parser.add_argument("--rates", type=float, nargs="+", default=[10, 15, 20, 25, 30])
    parser.add_argument("--duration-s", type=float, default=10.0)
    parser.add_argument("--warm-up-s", type=float, default=2.0)
    parser.add_argument("--max-batch", type=int, default=64, help="sessions in one step")
    parser.add_argument("--all", action="store_true", help="go on when the bar does not hold")
    parser.add_argument("--no-echo", action="store_true")
    parser.add_argument("--folder", type=Path, default=MEMORY, help="segments lie below it")
    parser.add_argument("--profile", type=Path, help="folder for py-spy's raw stacks, per process")
    return parser.parse_args()


if __name__ == "__main__":
    main()
