"""Real processes to be hurt: a Valkey, gateways and workers with a model that costs nothing.

Workers and gateways are forked from a process that has everything imported, so that they start in
milliseconds and fifty of them can be killed in a minute. They get real signals.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar, cast

import httpx
from prometheus_client.parser import text_string_to_metric_families

from bench.noop import start_gateway, start_worker, warm_up
from service.control import keys
from service.control.plane import ControlPlane
from service.control.workers import WorkerRecord
from service.local.embedded import EmbeddedValkey, free_port
from service.settings import Settings

T = TypeVar("T")

SMALL: dict[str, Any] = {
    "frame_width": 64,
    "frame_height": 32,
    "deterministic": True,
    "lease_s": 1.0,
    "linger_s": 0.5,
    "grpc_port": 0,
    "log_level": "error",
}


@dataclasses.dataclass
class Fleet:
    """A Valkey, the control plane on it, and the processes started so far."""

    settings: Settings
    valkey: EmbeddedValkey
    control: ControlPlane
    processes: list[BaseProcess] = dataclasses.field(default_factory=list)

    def worker(self, fault: str = "", step_s: float = 0.0, **changes: Any) -> BaseProcess:
        settings = self.settings.model_copy(update=changes)
        self.processes.append(start_worker(settings, fault, step_s))
        return self.processes[-1]

    def gateway(self, port: int) -> BaseProcess:
        self.processes.append(start_gateway(self.settings.model_copy(update={"port": port})))
        return self.processes[-1]

    async def record(self, process: BaseProcess) -> WorkerRecord:
        """What a worker reports of itself; waits until it does."""

        async def found() -> WorkerRecord | None:
            alive = await self.control.workers.alive()
            return next((one for one in alive if one.pid == process.pid), None)

        return await until(found)

    async def leases(self, worker_id: str) -> dict[str, float]:
        """Sessions that a worker owns -> seconds until its lease ends."""
        found, redis = {}, cast(Any, self.control.redis)  # its types mix sync and async answers
        async for key in redis.scan_iter(match=keys.lease("*"), count=1000):
            lease, left_ms = await redis.get(key), await redis.pttl(key)
            if lease is not None and lease.decode().rpartition(".")[0] == worker_id:
                found[key.decode().partition("{")[2].partition("}")[0]] = left_ms / 1e3
        return found

    async def metric(self, process: BaseProcess, name: str, **labels: str) -> float:
        """The sum of a worker's metric over all labels but those that are given."""
        port = (await self.record(process)).metrics_port
        async with httpx.AsyncClient(trust_env=False) as client:
            text = (await client.get(f"http://127.0.0.1:{port}/metrics")).text
        families = text_string_to_metric_families(text)
        samples = (one for family in families for one in family.samples if one.name == name)
        return sum(one.value for one in samples if labels.items() <= one.labels.items())


@asynccontextmanager
async def fleet(folder: Path | None = None, **changes: Any) -> AsyncIterator[Fleet]:
    """An empty Valkey and store; every process that was started is killed at the end."""
    await asyncio.to_thread(warm_up)
    with tempfile.TemporaryDirectory(prefix="mirage-survive-") as temporary:
        data_dir = folder or Path(temporary)
        valkey = EmbeddedValkey(data_dir, port=free_port())
        await valkey.start()
        values = SMALL | {"redis_url": valkey.url, "data_dir": data_dir} | changes
        settings = Settings.model_validate(values)
        control = await ControlPlane.open(settings)
        running = Fleet(settings, valkey, control)
        try:
            yield running
        finally:
            for process in running.processes:
                await end(process)
            await control.close()
            await valkey.stop()


async def end(process: BaseProcess) -> None:
    """SIGKILL, also for one that is stopped."""
    process.kill()
    await asyncio.to_thread(process.join)


async def dead(process: BaseProcess) -> None:
    """Until a process is gone, noticed within milliseconds."""
    loop, gone = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(process.sentinel, gone.set)
    await gone.wait()
    loop.remove_reader(process.sentinel)
    process.join()


def send(process: BaseProcess, number: signal.Signals) -> None:
    assert process.pid is not None
    os.kill(process.pid, number)


async def until(found: Callable[[], Awaitable[T | None]], seconds: float = 60.0) -> T:
    """The first true answer of an async question asked again and again; raises TimeoutError."""
    async with asyncio.timeout(seconds):
        while not (answer := await found()):  # noqa: ASYNC110 it is in other processes
            await asyncio.sleep(0.02)
    return answer
