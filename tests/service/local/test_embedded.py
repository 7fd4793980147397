"""The embedded Valkey: its data survives, its process does not."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from redis.asyncio import Redis

from service.control.plane import ControlPlane
from service.errors import ConfigurationError, ControlPlaneDown
from service.local.embedded import EmbeddedValkey, free_port, valkey_binary
from service.settings import Settings


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("port", [None, free_port()])
async def test_what_was_written_is_there_at_the_next_start(
    tmp_path: Path, port: int | None
) -> None:
    for count in (1, 2):
        server = EmbeddedValkey(tmp_path, port)
        async with server as url:
            pid = server.pid
            redis = Redis.from_url(url)
            assert await redis.incr("starts") == count
            await redis.aclose()
        assert server.pid is None and pid and not is_running(pid)


@pytest.mark.parametrize("port", [None, free_port()])
async def test_one_that_died_runs_again_at_the_same_address(
    tmp_path: Path, port: int | None
) -> None:
    server = EmbeddedValkey(tmp_path, port)
    async with server as url, Redis.from_url(url) as redis:
        await redis.set("kept", "yes")
        pid = server.pid
        assert pid is not None and not server.died
        os.kill(pid, signal.SIGKILL)
        while not server.died:  # noqa: ASYNC110 of the kernel
            await asyncio.sleep(0.01)
        assert "the embedded Valkey ended with SIGKILL" in server.obituary().detail
        await server.restart()
        assert server.url == url and server.pid != pid
        async with Redis.from_url(url) as again:
            assert await again.get("kept") == b"yes"
        with pytest.raises(ControlPlaneDown, match="in use by another"):
            await EmbeddedValkey(tmp_path).start()


async def test_a_second_server_on_the_same_data_is_refused(tmp_path: Path) -> None:
    async with EmbeddedValkey(tmp_path):
        with pytest.raises(ControlPlaneDown, match="in use by another"):
            await EmbeddedValkey(tmp_path).start()
    async with EmbeddedValkey(tmp_path):
        pass


async def test_a_server_that_is_just_ending_is_waited_for(tmp_path: Path) -> None:
    (tmp_path / "valkey").mkdir()
    lock = os.open(tmp_path / "valkey" / "lock", os.O_CREAT | os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    asyncio.get_running_loop().call_later(0.1, os.close, lock)
    await start_and_stop(tmp_path)


def test_it_dies_with_its_parent(tmp_path: Path) -> None:
    code = (
        "import asyncio, os, sys, pathlib; from service.local.embedded import EmbeddedValkey\n"
        "server = EmbeddedValkey(pathlib.Path(sys.argv[1])); asyncio.run(server.start())\n"
        "print(server.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    parent = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert parent.returncode == -signal.SIGKILL, parent.stderr
    deadline = time.monotonic() + 60
    while is_running(int(parent.stdout)):
        assert time.monotonic() < deadline, "the server outlived its parent"
        time.sleep(0.02)
    left = Path((tmp_path / "valkey" / "url").read_text().removeprefix("unix://"))
    assert left.is_socket()
    asyncio.run(start_and_stop(tmp_path))
    assert not left.parent.exists()


async def start_and_stop(data_dir: Path) -> None:
    async with EmbeddedValkey(data_dir):
        pass


async def test_the_socket_of_a_server_that_lives_stays(tmp_path: Path) -> None:
    async with EmbeddedValkey(tmp_path / "data") as url:
        shutil.copytree(tmp_path / "data", tmp_path / "copy")  # a backup, whose lock is free
        await start_and_stop(tmp_path / "copy")
        redis = Redis.from_url(url)
        assert await redis.ping()
        await redis.aclose()


async def test_a_server_that_cannot_start_says_its_last_words(tmp_path: Path) -> None:
    (tmp_path / "valkey").mkdir()
    (tmp_path / "valkey" / "appendonlydir").write_text("not a directory")
    server = EmbeddedValkey(tmp_path)
    with pytest.raises(ControlPlaneDown, match="last words"):
        await server.start()
    assert server.pid is None


async def test_no_redis_is_said_so(tmp_path: Path) -> None:
    nowhere = Settings(redis_url=f"redis://127.0.0.1:{free_port()}", data_dir=tmp_path)
    with pytest.raises(ControlPlaneDown, match="Redis does not answer"):
        await ControlPlane.open(nowhere)
    with pytest.raises(ConfigurationError, match="MIRAGE_REDIS_URL"):
        await ControlPlane.open(Settings(data_dir=tmp_path))


def test_the_binary_is_there() -> None:
    assert os.access(valkey_binary(), os.X_OK)
