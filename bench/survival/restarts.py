"""What workers and clients stand on goes away and comes back: the gateway, Valkey, the disk."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import httpx
import websockets

from bench.survival.fleet import Fleet, end, fleet, until
from bench.survival.kills import STEP_S
from bench.survival.walks import STEPS, Walker, judge, walk_until, walkers
from service.client.frames import Frame
from service.client.stream import Stream
from service.local.embedded import free_port


async def gateway_kills(num_kills: int, num_clients: int = 32) -> dict[str, Any]:
    """SIGKILL to the gateway under clients that stream; they come back with their last number."""
    port = free_port()
    async with fleet() as running:
        clients = [Streamer(one, port) for one in await walkers(running.control, num_clients)]
        running.worker(step_s=0.1)
        gateway = running.gateway(port)
        for client in clients:
            await client.walker.ask()
        streaming = [asyncio.create_task(one.run(1 + len(STEPS))) for one in clients]
        for _ in range(num_kills):
            await _some_frames(clients)
            await end(gateway)
            await asyncio.sleep(0.3)
            gateway = running.gateway(port)
        await asyncio.gather(*streaming)
        verdict = await judge(running.control, [one.walker for one in clients])
    connections = sum(one.num_connections for one in clients)
    figures = {"gateway_kills": num_kills, "clients": num_clients, "connections": connections}
    return figures | verdict


class Streamer:
    """A client on a WebSocket that reconnects with the number of the last frame it has."""

    def __init__(self, walker: Walker, port: int) -> None:
        self.walker, self.num_connections = walker, 0
        self._url = f"ws://127.0.0.1:{port}/v1/sessions/{walker.session}/stream"

    async def run(self, count: int) -> None:
        async with asyncio.timeout(600):
            while len(self.walker.images) < count:
                try:
                    await self._follow(count)
                except (OSError, websockets.WebSocketException):
                    await asyncio.sleep(0.1)

    async def _follow(self, count: int) -> None:
        async with Stream(self._url, {}, len(self.walker.images) - 1, {}) as stream:
            connections = self.num_connections
            async for frame in stream.frames():
                self.num_connections = connections + stream.num_connections
                self._take(frame)
                if len(self.walker.images) >= count:
                    return

    def _take(self, frame: Frame) -> None:
        self.walker.note(frame.number, frame.image)


async def _some_frames(clients: list[Streamer]) -> None:
    before = sum(len(one.walker.images) for one in clients)

    async def came() -> bool:
        now = [len(one.walker.images) for one in clients]
        return sum(now) >= before + len(clients) or min(now) > len(STEPS)

    await until(came)


async def valkey_restarts(num_restarts: int, num_sessions: int = 4) -> dict[str, Any]:
    """SIGKILL to Valkey, and a start with its append-only file, while clients walk."""
    async with fleet() as running:
        clients = await walkers(running.control, num_sessions)
        for _ in range(2):
            running.worker(step_s=STEP_S)
        over = asyncio.Event()
        walking = [asyncio.create_task(walk_until(one, over)) for one in clients]
        for _ in range(num_restarts):
            await asyncio.sleep(1.0)
            await _restart(running)
        await asyncio.sleep(1.0)
        over.set()
        await asyncio.gather(*walking)
        requests = [await running.control.requests.list(one.session) for one in clients]
        unfinished = sum(not one.state.is_final for some in requests for one in some)
        verdict = await judge(running.control, clients)
    return {"valkey_restarts": num_restarts, "requests_unfinished": unfinished} | verdict


async def _restart(running: Fleet) -> None:
    assert running.valkey.pid is not None
    os.kill(running.valkey.pid, signal.SIGKILL)
    await running.valkey.stop()
    await asyncio.sleep(0.3)
    await running.valkey.start()


async def disk_full(num_sessions: int = 2) -> dict[str, Any]:
    """The store's disk fills up in the middle of walks, and has room again later. A small disk is
    mounted for this, which only root may do.
    """
    with tempfile.TemporaryDirectory(prefix="mirage-disk-") as folder, _disk(Path(folder)) as disk:
        if disk is None:
            return {"skipped": "a small disk can't be mounted here"}
        async with fleet(store_url=disk.as_uri()) as running:
            return await _fill_and_empty(running, disk, num_sessions)


@contextmanager
def _disk(folder: Path) -> Iterator[Path | None]:
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


async def _fill_and_empty(running: Fleet, disk: Path, num_sessions: int) -> dict[str, Any]:
    port, filler = free_port(), disk / "filler"
    clients = await walkers(running.control, num_sessions)
    worker = running.worker(step_s=STEP_S)
    running.gateway(port)
    over = asyncio.Event()
    walking = [asyncio.create_task(walk_until(one, over)) for one in clients]
    await until(lambda: _all_have(clients, 10))
    _fill(filler)
    reason = await until(lambda: _stands(running, worker, port))
    stood = [len(one.images) for one in clients]
    filler.unlink()
    await until(lambda: _all_have(clients, max(stood) + 20))
    over.set()
    await asyncio.gather(*walking)
    errors = int(await _store_errors(running, worker))
    verdict = await judge(running.control, clients)
    return {"readyz_said": reason, "store_errors": errors} | verdict


async def _store_errors(running: Fleet, worker: BaseProcess) -> float:
    return await running.metric(worker, "mirage_dependency_errors_total", of="store")


async def _stands(running: Fleet, worker: BaseProcess, port: int) -> str:
    """What the gateway says of a store that is full, once the worker has met it as well."""
    if not await _store_errors(running, worker):
        return ""
    reason = await _unready(port)
    return reason if "No space left" in reason else ""


def _fill(path: Path) -> None:
    """Take all the room there is on this disk."""
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 12))
        except OSError:
            pass


async def _all_have(clients: list[Walker], count: int) -> bool:
    return all(len(one.images) >= count for one in clients)


async def _unready(port: int) -> str:
    """Why the service is not ready; nothing while it is."""
    async with httpx.AsyncClient(trust_env=False) as http:
        try:
            answer = await http.get(f"http://127.0.0.1:{port}/readyz")
        except httpx.TransportError:
            return ""
    return "" if answer.status_code == 200 else str(answer.json()["detail"])
