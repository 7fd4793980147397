"""`mirage up` as a person runs it: real processes, with a worker package that needs no model."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from uploads_made import png

from service.client import Mirage
from service.errors import Unavailable
from service.local import stack
from service.local.embedded import free_port
from service.local.stack import Child, Stack
from service.settings import Settings

HELPERS = Path(__file__).parents[1]
# found before the real one, as the working directory comes first in the path of `python -m worker`
WORKER = """
import asyncio, sys
sys.path.insert(0, {helpers!r})
from fake_worker import FakeWorker
from service.settings import load_settings
asyncio.run(FakeWorker(load_settings()).run())
"""
ONLY_ONCE = """
import os, sys
if os.path.exists("ran"):
    sys.exit("the second one's words")
open("ran", "w").close()
print("the first one's words", flush=True)
"""


class NeverReady(Exception):
    """`mirage up` ended; what it said."""


class Up:
    """A running `mirage up` and the processes it started."""

    def __init__(self, folder: Path, *flags: str) -> None:
        self.process = start(folder, "up", "--port", "0", "--data-dir", "data", *flags)
        assert self.process.stdout is not None
        self.words = ""
        while "ready: " not in self.words:
            line = self.process.stdout.readline()
            if not line:
                self.process.communicate()
                raise NeverReady(self.words)
            self.words += line
        self.url = self.words.partition("ready: ")[2].split()[0]
        self.children = children(self.process.pid)

    def child(self, word: str) -> int:
        """The process whose command line has this word."""
        return next(pid for pid in children(self.process.pid) if word in command(pid))

    def family(self) -> list[int]:
        return children(self.process.pid) if self.process.poll() is None else []

    def end(self, how: signal.Signals) -> int:
        self.process.send_signal(how)
        self.process.communicate(timeout=60)
        return self.process.returncode


def start(folder: Path, *flags: str, **variables: str) -> subprocess.Popen[str]:
    """`mirage` with the worker package of `folder`."""
    clean = {key: text for key, text in os.environ.items() if not key.startswith("MIRAGE_")}
    return subprocess.Popen(
        [sys.executable, "-m", "service.cli", *flags],
        cwd=folder,
        env={**clean, "MIRAGE_LEASE_S": "1", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def command(pid: int) -> str:
    path = Path(f"/proc/{pid}/cmdline")
    return path.read_text().replace("\0", " ") if path.exists() else ""


def until(true: Callable[[], bool], within_s: float = 60.0) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if true():
            return True
        time.sleep(0.05)
    return False


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    package = tmp_path / "worker"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(WORKER.format(helpers=str(HELPERS)))
    yield tmp_path


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_up_stops_without_a_trace_and_worlds_are_there_the_next_time(folder: Path) -> None:
    first = Up(folder)
    assert len(first.children) == 3  # Valkey, gateway, worker
    with Mirage(first.url) as mirage:
        world = mirage.create(png())
        assert world.generate(actions=[{"forward_m": 0.3}]).wait()["done"] == 3
    assert first.end(signal.SIGINT) == 0
    assert not [pid for pid in first.children if command(pid)]

    second = Up(folder)
    with Mirage(second.url) as mirage:
        again = mirage.world(world.id)
        assert again.info["num_frames"] == 4
        old = second.child("-m worker")
        os.kill(old, signal.SIGKILL)  # a worker is lost: another one takes over
        assert until(
            lambda: any(one != old and "-m worker" in command(one) for one in second.family())
        )
        assert again.generate(actions=[{"yaw_deg": 8}]).wait()["done"] == 2
        assert second.child("-m worker") != old
    family = children(second.process.pid)
    assert second.end(signal.SIGKILL) == -signal.SIGKILL  # the parent is lost: nobody stays behind
    assert until(lambda: not [pid for pid in family if command(pid)])


def is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()  # what nobody waited for is still there


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_gateway_that_is_lost_is_replaced_at_its_address(folder: Path) -> None:
    up = Up(folder)
    with Mirage(up.url) as mirage:
        world = mirage.create(png())
        assert world.generate(actions=[{"forward_m": 0.3}]).wait()["done"] == 3
        old = up.child("service.cli gateway")
        os.kill(old, signal.SIGKILL)
        assert until(lambda: is_gone(old))
        assert until(lambda: is_ready(up.url))
        assert mirage.world(world.id).generate(actions=[{"yaw_deg": 8}]).wait()["done"] == 2
    assert up.child("service.cli gateway") != old
    assert up.end(signal.SIGINT) == 0


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz").status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_valkey_that_is_lost_is_replaced_with_all_it_knew(folder: Path) -> None:
    up = Up(folder)
    with Mirage(up.url) as mirage:
        world = mirage.create(png())
        assert world.generate(actions=[{"forward_m": 0.3}]).wait()["done"] == 3
        old = up.child("valkey-server")
        os.kill(old, signal.SIGKILL)
        assert until(lambda: is_gone(old))
        assert until(lambda: httpx.get(f"{up.url}/readyz").status_code == 200)
        again = mirage.world(world.id)
        assert again.info["num_frames"] == 4
        assert again.generate(actions=[{"yaw_deg": 8}]).wait()["done"] == 2
    assert up.child("valkey-server") != old
    up.process.send_signal(signal.SIGINT)
    words, _ = up.process.communicate(timeout=60)
    assert up.process.returncode == 0
    assert words.count("the embedded Valkey ended with SIGKILL") == 1
    assert words.count("starting another one") >= 1  # a worker may die of it, too


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_valkey_that_cannot_start_again_ends_everything(folder: Path) -> None:
    up = Up(folder)
    family = up.family()
    for file in (folder / "data" / "valkey" / "appendonlydir").iterdir():
        file.write_text("nonsense\n")
    os.kill(up.child("valkey-server"), signal.SIGKILL)
    words, _ = up.process.communicate(timeout=60)
    assert up.process.returncode == 1
    _, _, end = words.partition("starting another one")
    assert "the embedded Valkey ended with 1; its last words" in end
    assert until(lambda: not [pid for pid in family if command(pid)])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_terminal_that_is_gone_keeps_nothing_running(folder: Path) -> None:
    up = Up(folder)
    assert up.process.stdout is not None
    up.process.stdout.close()  # what is said from now on fails
    old = up.child("-m worker")
    os.kill(old, signal.SIGKILL)
    assert until(lambda: any(one != old and "-m worker" in command(one) for one in up.family()))
    family = up.family()
    up.process.send_signal(signal.SIGTERM)
    up.process.wait(60)
    assert until(lambda: not [pid for pid in family if command(pid)])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_worker_that_cannot_start_stops_everything(folder: Path) -> None:
    words = "import sys; sys.exit('weights.safetensors is missing')"
    (folder / "worker" / "__main__.py").write_text(words)
    with pytest.raises(NeverReady, match=r"the worker ended with 1; its last words(.|\n)* missing"):
        Up(folder)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_the_dead_said_is_kept_and_told_apart(folder: Path) -> None:
    (folder / "worker" / "__main__.py").write_text(ONLY_ONCE + WORKER.format(helpers=str(HELPERS)))
    up = Up(folder)
    os.kill(up.child("-m worker"), signal.SIGKILL)
    words, _ = up.process.communicate(timeout=60)  # the second one can't run
    first, _, second = words.partition("starting another one")
    assert "the worker ended with SIGKILL" in first and "the first one's words" in first
    assert "the worker ended with 1;" in second and "the second one's words" in second
    assert "the first one's words" not in second
    logs = folder / "data" / "logs"
    kept = (logs / "worker.log").read_text()
    assert kept.index("the first one's words") < kept.index("the second one's words")

    with pytest.raises(NeverReady):
        Up(folder)
    assert (logs / "worker.log.1").read_text() == kept
    assert "the first one's words" not in (logs / "worker.log").read_text()


@pytest.mark.parametrize("setting", ["MIRAGE_PORT", "MIRAGE_GRPC_PORT"])
def test_up_with_a_port_that_is_taken_starts_nothing(folder: Path, setting: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        free = {"MIRAGE_PORT": str(free_port()), "MIRAGE_GRPC_PORT": str(free_port())}
        process = start(folder, "up", "--data-dir", "data", **(free | {setting: str(port)}))
        words, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    _, told = words.splitlines()
    assert told.startswith(f"mirage: port {port} of 127.0.0.1 can't be listened on")
    assert setting in told
    assert not (folder / "data").exists()


def test_http_and_grpc_on_one_port_are_refused(folder: Path) -> None:
    port = str(free_port())
    process = start(folder, "up", "--port", port, MIRAGE_GRPC_PORT=port)
    words, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and f"port {port} " in words and "MIRAGE_GRPC_PORT" in words


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(sys.platform != "linux" or not has_ipv6(), reason="no IPv6 here")
def test_up_on_an_ipv6_address(folder: Path) -> None:
    up = Up(folder, "--host", "::1")
    assert up.url.startswith("http://[::1]:")
    with Mirage(up.url) as mirage:
        assert mirage.create(png()).info["num_frames"] == 0
    assert up.end(signal.SIGINT) == 0


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("::", "http://[::1]:80"),
        ("fe80::1", "http://[fe80::1]:80"),
        ("box", "http://box:80"),
    ],
)
def test_where_it_can_be_reached(host: str, url: str) -> None:
    assert Stack(Settings(host=host, port=80)).url == url


async def test_a_stranger_that_answers_is_not_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def page(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\n\r\nhello")
        writer.close()

    monkeypatch.setattr(stack, "READY_S", 1.0)
    async with await asyncio.start_server(page, "127.0.0.1", 0) as stranger:
        port = stranger.sockets[0].getsockname()[1]
        service = Stack(Settings(port=port, data_dir=tmp_path))
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", "input()", stdin=-1)
        service.gateway = service.worker = Child("gateway", process, tmp_path / "log", 0)
        with pytest.raises(Unavailable, match="not ready within 1 s: HTTP 404"):
            await service._until_ready()
        await service.gateway.stop()


def test_the_demo_says_where_its_pictures_are(folder: Path) -> None:
    (folder / "photo.png").write_bytes(png())
    process = start(folder, "demo", "--image", "photo.png", "--output", "out")
    words, _ = process.communicate(timeout=60)
    assert process.returncode == 0, words
    *files, data = words.splitlines()[-4:]
    assert files == ["out/walk.mp4", "out/sheet.png", "out/report.json"]
    assert all((folder / file).is_file() for file in files)
    assert data.startswith("out/data (") and (folder / "out" / "data").is_dir()
