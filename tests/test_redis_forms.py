"""The same walk over a cluster of three nodes, and over a master that a Sentinel replaces: real
Valkeys, real processes."""

from __future__ import annotations

import asyncio
import contextlib
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

sys.path.insert(0, str(Path(__file__).parent / "worker"))
from noop_worker import open_session, serving
from out_and_back import BACK, OUT, done, forked, images, undisturbed, walk

from service.control import keys
from service.control.branches import ForkIn, RewindIn
from service.control.connect import connect
from service.control.plane import ControlPlane
from service.errors import ConfigurationError, ControlPlaneDown
from service.local.embedded import free_port, valkey_binary
from service.settings import Settings
from service.store.fsck import Fsck

SLOTS = ((0, 5460), (5461, 10922), (10923, 16383))
PASSWORD = "secret"


@contextmanager
def valkey(folder: Path, *options: str) -> Iterator[int]:
    """A server on a free port."""
    port = free_port()
    folder.mkdir(parents=True, exist_ok=True)
    common = ["--port", str(port)]
    if "--sentinel" not in options:
        common += ["--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    with (folder / "log").open("wb") as log:
        command = [str(valkey_binary()), *options, *common]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield port
    finally:
        process.kill()
        process.wait()


async def until_true(ask: Any, seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while True:
            with contextlib.suppress(RedisError, OSError, ControlPlaneDown):
                if await ask():
                    return
            await asyncio.sleep(0.05)


@asynccontextmanager
async def client(port: int, password: str | None = None) -> AsyncIterator[Any]:
    redis = Redis(port=port, password=password)
    await until_true(redis.ping)
    yield redis
    await redis.aclose()


@asynccontextmanager
async def cluster(folder: Path) -> AsyncIterator[list[int]]:
    """Three masters, no replicas."""
    async with contextlib.AsyncExitStack() as stack:
        ports, buses = [], [free_port() for _ in SLOTS]
        for number, bus in enumerate(buses):
            options = ["--cluster-enabled", "yes", "--cluster-port", str(bus)]
            ports.append(stack.enter_context(valkey(folder / str(number), *options)))
        nodes = [await stack.enter_async_context(client(port)) for port in ports]
        for node, (first, last) in zip(nodes, SLOTS, strict=True):
            await node.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
        for port, bus in zip(ports[1:], buses[1:], strict=True):
            await nodes[0].execute_command("CLUSTER", "MEET", "127.0.0.1", port, bus)
        for node in nodes:

            async def agrees(node: Any = node) -> bool:
                seen = str(await node.execute_command("CLUSTER", "INFO"))
                return bool(re.search(r"state\W+ok", seen) and re.search(r"nodes\W+3", seen))

            await until_true(agrees)
        yield ports


async def test_a_cluster_does_all_that_one_server_does(settings: Settings, tmp_path: Path) -> None:
    async with cluster(tmp_path / "cluster") as ports:
        nodes = ",".join(f"127.0.0.1:{port}" for port in ports)
        url = f"redis+cluster://{nodes}"
        settings = settings.model_copy(update={"redis_url": url, "lease_s": 20.0})
        control = await ControlPlane.open(settings)
        try:
            async with serving(control, settings):
                whole = await undisturbed(control)
                sessions = [await open_session(control, 3) for _ in range(3)]
                for session in sessions:
                    await walk(control, session.id, OUT)
                fork = await forked(control, sessions[0].id, ForkIn())
                asked = await control.branches.rewind(sessions[1].id, RewindIn(frame=4))
                await done(control, sessions[1].id, asked)
                assert images(await walk(control, fork.id, BACK)) == images(whole)
                assert len((await control.sessions.list()).items) == 5
                await control.sessions.delete(sessions[0].id)
                await control.sweeper.sweep()
                assert (await Fsck(control).check()).is_whole
        finally:
            await control.close()


async def test_sentinel_says_who_is_master_now(settings: Settings, tmp_path: Path) -> None:
    secret = ["--requirepass", PASSWORD, "--masterauth", PASSWORD]
    async with contextlib.AsyncExitStack() as stack:
        first = stack.enter_context(contextlib.ExitStack())
        master = first.enter_context(valkey(tmp_path / "master", *secret))
        options = [*secret, "--replicaof", f"127.0.0.1 {master}"]
        replica = stack.enter_context(valkey(tmp_path / "replica", *options))
        config = tmp_path / "sentinel.conf"
        config.write_text(
            f"sentinel monitor worlds 127.0.0.1 {master} 1\n"
            f"sentinel auth-pass worlds {PASSWORD}\n"
            "sentinel down-after-milliseconds worlds 500\n"
            "sentinel failover-timeout worlds 2000\n"
        )
        sentinel = stack.enter_context(valkey(tmp_path / "sentinel", str(config), "--sentinel"))
        one = await stack.enter_async_context(client(replica, PASSWORD))

        async def is_linked() -> bool:
            return bool((await one.info("replication")).get("master_link_status") == "up")

        await until_true(is_linked)
        asking = await stack.enter_async_context(client(sentinel))

        async def knows_replica() -> bool:
            return bool(await asking.execute_command("SENTINEL", "REPLICAS", "worlds"))

        await until_true(knows_replica)
        url = f"redis+sentinel://:{PASSWORD}@127.0.0.1:{sentinel}/worlds/0"
        control = await ControlPlane.open(settings.model_copy(update={"redis_url": url}))
        stack.push_async_callback(control.close)
        session = await open_session(control)

        async def is_replicated() -> bool:
            return bool(await one.exists(keys.record(session.id)))

        await until_true(is_replicated)
        first.close()  # the master is killed

        async def is_back() -> bool:
            return (await control.sessions.get(session.id)).id == session.id

        await until_true(is_back)
        await open_session(control)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://host", "can't be used"),
        ("redis+sentinel://host", "name of the master"),
        ("redis+sentinel://host/worlds/x", "can't be used"),
        ("redis+cluster://,", "no host"),
        ("redis+cluster://host:port", "can't be used"),
    ],
)
def test_a_url_that_can_not_be_used_says_why(url: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        connect(url)


@pytest.mark.parametrize("form", ["redis", "redis+cluster"])
async def test_where_nobody_answers_every_form_says_so(form: str) -> None:
    redis = connect(f"{form}://127.0.0.1:{free_port()}")
    with pytest.raises(RedisError, match=r"127\.0\.0\.1"):
        await redis.ping()
    await redis.aclose()


async def test_options_reach_the_client() -> None:
    redis = connect("rediss://ann:pw@host:7000/2?ssl_cert_reqs=none")
    given = redis.connection_pool.connection_kwargs
    assert (given["username"], given["password"], given["db"]) == ("ann", "pw", 2)
    assert given["ssl_cert_reqs"] == "none" and given["retry"].get_retries() > 3
    await redis.aclose()
