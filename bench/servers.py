"""What `bench.gateway` walks against: the real stack, whose worker costs nothing, and echoes."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from bench.grpc_walker import connect_grpc
from bench.walkers import Run, Walker, connect_websocket
from service.local.embedded import EmbeddedValkey, free_port
from service.local.stack import running_stack
from service.settings import load_settings

WORKER = ("bench.noop", "--still")


@dataclass(frozen=True)
class Server:
    url: str
    grpc_address: str
    path: str  # of the WebSocket, with the session's id
    pids: dict[str, int]
    redis_url: str = ""

    async def connect(self, transport: str, session: str, run: Run) -> Walker:
        """`transport`: websocket (protobuf), websocket_json or grpc."""
        if transport == "grpc":
            return await connect_grpc(self.grpc_address, session, run)
        url = self.url.replace("http", "ws", 1) + self.path.format(session)
        return await connect_websocket(url, run, binary=transport == "websocket")


@asynccontextmanager
async def service(folder: Path, max_batch: int) -> AsyncIterator[Server]:
    """A running stack: small frames, chunks of one, segments in `folder`."""
    valkey = EmbeddedValkey(folder)
    async with valkey as redis_url:
        settings = load_settings(
            {},
            redis_url=redis_url,
            data_dir=folder,
            port=free_port(),
            grpc_port=free_port(),
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
            assert stack.gateway is not None and stack.worker is not None and valkey.pid
            pids = {
                "client": os.getpid(),
                "gateway": stack.gateway.process.pid,
                "worker": stack.worker.process.pid,
                "valkey": valkey.pid,
            }
            grpc_address = f"127.0.0.1:{settings.grpc_port}"
            path = "/v1/sessions/{}/stream"
            yield Server(stack.url, grpc_address, path, pids, redis_url)


@asynccontextmanager
async def echo() -> AsyncIterator[Server]:
    """A bare FastAPI and a bare grpc.aio server, in one process."""
    port, grpc_port = free_port(), free_port()
    command = ["-m", "bench.echo", "--port", str(port), "--grpc-port", str(grpc_port)]
    process = await asyncio.create_subprocess_exec(sys.executable, *command)
    url = f"http://127.0.0.1:{port}"
    try:
        await _until_answers(f"{url}/item")
        pids = {"client": os.getpid(), "echo": process.pid}
        yield Server(url, f"127.0.0.1:{grpc_port}", "/stream", pids)
    finally:
        process.terminate()
        await process.wait()


async def _until_answers(url: str) -> None:
    async with httpx.AsyncClient() as client, asyncio.timeout(60):
        while True:
            try:
                await client.get(url)
                return
            except httpx.TransportError:
                await asyncio.sleep(0.05)
