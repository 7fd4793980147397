"""The whole service on one machine: a Valkey, a gateway and a worker, each a process of its own.

How: this process only supervises. Children get SIGTERM when it ends, however it ends (Linux: the
kernel's parent-death signal), and are stopped in order: worker, gateway, Valkey. What they print
goes to files in `data_dir/logs` (`*.log.1`: of the run before); a child's last lines are shown when
it dies. A worker or a gateway that dies when it was ready is started again; worlds are restored
from their segments. So is the Valkey, with all that it had acknowledged.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from service.addresses import address, check_ports
from service.client.retries import problem_of
from service.errors import Unavailable
from service.local.embedded import EmbeddedValkey, free_port
from service.local.obituary import obituary
from service.local.orphans import ends_with_parent
from service.settings import Settings

READY_S = 180.0  # weights may have to be read from a slow disk
STOP_S = 15.0
POLL_S = 0.1
EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # -> one of them


def tell(words: str) -> None:
    """To whoever reads on: a terminal that is gone must not stop what runs, or keep it running."""
    with contextlib.suppress(OSError):
        print(words, flush=True)


@dataclass
class Child:
    """One of our processes and the file it prints to."""

    name: str
    process: asyncio.subprocess.Process
    log: Path
    log_begin: int  # where its own words begin

    @property
    def died(self) -> bool:
        return self.process.returncode is not None

    def obituary(self) -> Unavailable:
        code = self.process.returncode or 0
        return Unavailable(obituary(self.name, code, self.log, self.log_begin))

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL if that is not enough; harmless if it is gone."""
        if self.died:
            return
        self.process.terminate()
        try:
            await asyncio.wait_for(self.process.wait(), STOP_S)
        except TimeoutError:
            self.process.kill()
            await self.process.wait()


class Stack:
    """A running service; `watch` keeps it alive."""

    def __init__(
        self,
        settings: Settings,
        worker_command: Sequence[str] = ("worker",),
        valkey: EmbeddedValkey | None = None,
    ) -> None:
        """`settings.redis_url` and `settings.port` are final; `worker_command`: module, flags;
        `valkey`: ours, which runs; None = it is somebody else's.
        """
        self.settings, self._worker_command, self._valkey = settings, worker_command, valkey
        self._logs = settings.data_dir / "logs"
        self.gateway: Child | None = None
        self.worker: Child | None = None

    @property
    def url(self) -> str:
        host = EVERY_ADDRESS.get(self.settings.host, self.settings.host)
        return f"http://{address(host, self.settings.port)}"

    async def start(self) -> None:
        """Wait until work is accepted; raises Unavailable with a child's last words."""
        for log in self._logs.glob("*.log"):
            log.replace(log.with_name(f"{log.name}.1"))
        self.gateway = await self._spawn_gateway()
        self.worker = await self._spawn_worker()
        await self._until_ready()

    async def stop(self) -> None:
        for child in (self.worker, self.gateway):
            if child is not None:
                await child.stop()

    async def watch(self) -> None:
        """Replace what dies; raises Unavailable, the last words of one that can't be replaced."""
        while True:
            assert self.gateway is not None and self.worker is not None
            if self._valkey is not None and self._valkey.died:
                _tell_of(self._valkey)
                await self._valkey.restart()
            elif self.gateway.died:
                _tell_of(self.gateway)
                self.gateway = await self._spawn_gateway()
                await self._until_ready()
            elif self.worker.died:
                _tell_of(self.worker)
                self.worker = await self._spawn_worker()
                await self._until_ready()
            else:
                await asyncio.sleep(POLL_S)

    async def _until_ready(self) -> None:
        assert self.gateway is not None and self.worker is not None
        deadline = asyncio.get_running_loop().time() + READY_S
        reason = "no answer yet"
        async with httpx.AsyncClient(base_url=self.url, timeout=5, trust_env=False) as client:
            while asyncio.get_running_loop().time() < deadline:
                for child in (self.gateway, self.worker):
                    if child.died:
                        raise child.obituary()
                with contextlib.suppress(httpx.TransportError):
                    answer = await client.get("/readyz")
                    if answer.status_code == 200:
                        return
                    reason = problem_of(answer).get("detail", reason)
                await asyncio.sleep(POLL_S)
        raise Unavailable(f"the service was not ready within {READY_S:g} s: {reason}")

    async def _spawn_gateway(self) -> Child:
        return await self._spawn("gateway", "service.cli", "gateway")

    async def _spawn_worker(self) -> Child:
        return await self._spawn("worker", *self._worker_command)

    async def _spawn(self, name: str, *module: str) -> Child:
        self._logs.mkdir(parents=True, exist_ok=True)
        log = self._logs / f"{name}.log"
        with log.open("ab") as output:
            begin = output.tell()
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                *module,
                env=environment(self.settings),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C is for the supervisor, which stops them in order
                preexec_fn=ends_with_parent(signal.SIGTERM),
            )
        return Child(name, process, log, begin)


@asynccontextmanager
async def running_stack(
    settings: Settings, worker_command: Sequence[str] = ("worker",)
) -> AsyncIterator[Stack]:
    """The service runs and accepts work inside the block. Port 0 becomes a free one; without a
    `redis_url` an embedded Valkey is started first and stopped last. Raises ConfigurationError for
    a port that is taken, before anything starts."""
    async with AsyncExitStack() as stack:
        if not settings.port:
            grpc_port = settings.grpc_port and free_port()
            settings = settings.model_copy(update={"port": free_port(), "grpc_port": grpc_port})
        check_ports(settings)
        valkey = None
        if not settings.redis_url:
            valkey = EmbeddedValkey(settings.data_dir)
            url = await stack.enter_async_context(valkey)
            settings = settings.model_copy(update={"redis_url": url})
        running = Stack(settings, worker_command, valkey)
        stack.push_async_callback(running.stop)
        await running.start()
        yield running


def _tell_of(dead: Child | EmbeddedValkey) -> None:
    tell(f"{dead.obituary().detail}\nstarting another one")


def environment(settings: Settings) -> dict[str, str]:
    """This process's variables with every setting spelled out, so that flags reach the children."""
    named = {f"MIRAGE_{name.upper()}": str(value) for name, value in settings}
    return {**os.environ, **named}
