"""What the service adds to a model: pose-to-frame latency, rates and CPU per frame, with a worker
whose model costs nothing.

`python -m bench.gateway --json out/gateway.json`: a real Valkey, gateway and worker (`bench.noop
--still`), one-frame chunks, a local store without fsync; sessions walk at a fixed rate from this
process. Latency is from just before a pose is sent to the last byte of its frame's picture. Then
the rate rises until the bar no longer holds, and the same client asks bare echo servers, so that
the overhead is a ratio. All processes share this machine's cores: say how many with `taskset`.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import uvloop
from PIL import Image
from redis.asyncio import Redis

from bench.usage import cpu_of_all, profile, redis_counters
from bench.walkers import Clock, Tally, WebSocketWalker, connect_websocket, walk
from service.embedded import EmbeddedValkey, free_port
from service.settings import load_settings
from service.stack import running_stack

BARS_MS = {"websocket": 15.0, "grpc": 20.0}  # of the 99th percentile
DELIVERED = 0.99  # of the poses; fewer means that the service can't keep up
WARM_UP_S = 2.0
WORKER = ("bench.noop", "--still")


@dataclass(frozen=True)
class Target:
    """A server to walk against."""

    pids: dict[str, int]
    redis_url: str = ""


Connect = Callable[[int, Clock], Awaitable[WebSocketWalker]]  # number of the walker


async def measure(
    target: Target,
    connect: Connect,
    num: int,
    rate_hz: float,
    duration_s: float,
    profile_to: Path | None = None,
) -> dict[str, Any]:
    """One run: walkers connect, warm up, are measured and leave."""
    clock, tally = Clock(), Tally()
    walkers = [await connect(number, clock) for number in range(num)]
    walking = asyncio.create_task(walk(walkers, rate_hz, WARM_UP_S + duration_s + 0.5))
    await asyncio.sleep(WARM_UP_S)
    profiling = await profile(target.pids, duration_s, profile_to)
    counters, cpu = await _counters(target), cpu_of_all(target.pids)
    clock.tally, started_s = tally, time.perf_counter()
    await asyncio.sleep(duration_s)
    clock.tally, spent_s = None, time.perf_counter() - started_s
    cpu = {name: now - cpu[name] for name, now in cpu_of_all(target.pids).items()}
    now = await _counters(target)
    counters = {name: now[name] - counters[name] for name in now}
    await asyncio.gather(walking, *(one.wait() for one in profiling))
    for walker in walkers:
        await walker.close()
    return summary(tally, cpu, counters, spent_s) | {"sessions": num, "rate_hz": rate_hz}


async def _counters(target: Target) -> dict[str, int]:
    if not target.redis_url:
        return {}
    async with Redis.from_url(target.redis_url) as redis:
        return await redis_counters(redis)


def summary(
    tally: Tally, cpu_s: dict[str, float], counters: dict[str, int], spent_s: float
) -> dict[str, Any]:
    frames = max(1, len(tally.latencies_ms))
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
        "valkey_per_frame": {name: count / frames for name, count in counters.items()},
        "image_bytes": tally.image_bytes / frames,
        "errors": len(tally.errors),
        "first_error": tally.errors[0] if tally.errors else None,
    }


def percentile(values: list[float], rank: float) -> float:
    return float(np.percentile(values, rank)) if values else float("nan")


def holds(run: dict[str, Any], bar_ms: float) -> bool:
    return run["p99_ms"] <= bar_ms and run["delivered"] >= DELIVERED and not run["errors"]


@asynccontextmanager
async def service(folder: Path, max_batch: int) -> AsyncIterator[tuple[str, Target]]:
    """A running stack whose model costs nothing: its URL, and what to measure."""
    valkey = EmbeddedValkey(folder)
    async with valkey as redis_url:
        settings = load_settings(
            {},
            redis_url=redis_url,
            data_dir=folder,
            port=free_port(),
            frame_width=64,
            frame_height=32,
            image_format="jpeg",
            chunk_frames=1,
            max_batch=max_batch,
            torch_threads=1,
            linger_s=60.0,
            log_level="warning",
        )
        async with running_stack(settings, WORKER) as stack:
            assert stack.gateway is not None and stack.worker is not None
            pids = {"client": os.getpid(), "gateway": stack.gateway.process.pid}
            pids |= {"worker": stack.worker.process.pid, "valkey": valkey.pid or 0}
            yield stack.url, Target(pids, redis_url)


@asynccontextmanager
async def echo() -> AsyncIterator[tuple[str, Target]]:
    """A bare FastAPI server."""
    port = free_port()
    command = [sys.executable, "-m", "bench.echo", "--port", str(port)]
    process = await asyncio.create_subprocess_exec(*command)
    url = f"http://127.0.0.1:{port}"
    try:
        await _until_answers(f"{url}/item")
        yield url, Target({"client": os.getpid(), "echo": process.pid})
    finally:
        process.terminate()
        await process.wait()


async def _until_answers(url: str) -> None:
    async with httpx.AsyncClient() as client, asyncio.timeout(20):
        while True:
            try:
                await client.get(url)
                return
            except httpx.TransportError:
                await asyncio.sleep(0.05)


async def rate(num: int, call: Callable[[int], Awaitable[httpx.Response]]) -> tuple[list, float]:
    """Answers, and calls per second of 8 at a time."""
    gate = asyncio.Semaphore(8)

    async def one(number: int) -> httpx.Response:
        async with gate:
            return (await call(number)).raise_for_status()

    started_s = time.perf_counter()
    answers = await asyncio.gather(*(one(number) for number in range(num)))
    return answers, num / (time.perf_counter() - started_s)


async def rest(url: str, num: int) -> tuple[list[str], dict[str, float]]:
    """New sessions' ids, and the rates of creating and of inspecting them."""
    picture = io.BytesIO()
    Image.new("RGB", (128, 64), (120, 90, 60)).save(picture, "png")
    files = {"image": ("view.png", picture.getvalue())}
    async with httpx.AsyncClient(base_url=url, timeout=30.0) as client:
        created, creates_per_s = await rate(
            num, lambda _: client.post("/v1/sessions", files=files, data={"memory": "null"})
        )
        ids = [answer.json()["id"] for answer in created]
        _, inspects_per_s = await rate(
            5 * num, lambda number: client.get(f"/v1/sessions/{ids[number % num]}")
        )
    return ids, {"creates_per_s": creates_per_s, "inspects_per_s": inspects_per_s}


async def bare_rest(url: str, num: int) -> dict[str, float]:
    """The same client against a server that does nothing."""
    async with httpx.AsyncClient(base_url=url) as client:
        _, creates_per_s = await rate(num, lambda _: client.post("/item", content=bytes(500)))
        _, inspects_per_s = await rate(5 * num, lambda _: client.get("/item"))
    return {"creates_per_s": creates_per_s, "inspects_per_s": inspects_per_s}


async def over_websocket(
    args: argparse.Namespace, url: str, target: Target, path: str, ids: list[str]
) -> list[dict[str, Any]]:
    """Runs of rising rates, until one does not hold."""
    runs = []

    async def connect(number: int, clock: Clock) -> WebSocketWalker:
        return await connect_websocket(url.replace("http", "ws") + path.format(ids[number]), clock)

    for rate_hz in args.rates:
        runs.append(
            await measure(target, connect, len(ids), rate_hz, args.duration_s, args.profile)
        )
        print_run(path, runs[-1])
        if not holds(runs[-1], BARS_MS["websocket"]) and not args.all:
            break
    return runs


def print_run(name: str, run: dict[str, Any]) -> None:
    costs = " ".join(f"{part} {ms:.3f}" for part, ms in run["cpu_ms_per_frame"].items())
    valkey = " ".join(f"{part} {count:.1f}" for part, count in run["valkey_per_frame"].items())
    print(
        f"{name:10.10} {run['sessions']} x {run['rate_hz']:g}/s: p50 {run['p50_ms']:.1f} "
        f"p99 {run['p99_ms']:.1f} max {run['max_ms']:.1f} ms, {run['delivered']:.1%} delivered, "
        f"late {run['client_late_p99_ms']:.1f}; CPU ms/frame: {costs}; "
        f"cores {run['cores_used']:.2f}; valkey/frame: {valkey}; {run['first_error'] or ''}",
        flush=True,
    )


async def run(args: argparse.Namespace) -> dict[str, Any]:
    report: dict[str, Any] = {"cores": len(os.sched_getaffinity(0)), "load": os.getloadavg()}
    with tempfile.TemporaryDirectory(prefix="mirage-bench-") as folder:
        async with service(Path(folder), args.max_batch) as (url, target):
            ids, report["rest"] = await rest(url, args.sessions)
            print(report["rest"])
            report["websocket"] = await over_websocket(
                args, url, target, "/v1/sessions/{}/stream", ids
            )
    if not args.no_echo:
        async with echo() as (url, target):
            report["bare_rest"] = await bare_rest(url, args.sessions)
            print(report["bare_rest"])
            report["bare_websocket"] = await over_websocket(args, url, target, "/stream", ids)
    return report


def main() -> None:
    args = parse()
    report = uvloop.run(run(args))
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(report, indent=1) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.gateway", description=__doc__)
    parser.add_argument("--json", type=Path, default=Path("out/gateway.json"))
    parser.add_argument("--sessions", type=int, default=100)
    parser.add_argument("--rates", type=float, nargs="+", default=[10, 15, 20, 25, 30])
    parser.add_argument("--duration-s", type=float, default=10.0)
    parser.add_argument("--max-batch", type=int, default=64, help="sessions in one step")
    parser.add_argument("--all", action="store_true", help="go on when the bar does not hold")
    parser.add_argument("--no-echo", action="store_true")
    parser.add_argument("--profile", type=Path, help="folder for py-spy's raw stacks, per process")
    return parser.parse_args()


if __name__ == "__main__":
    main()
