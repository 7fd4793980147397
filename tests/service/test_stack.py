"""`mirage up` as a person runs it: real processes, with a worker package that needs no model."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from uploads_made import png

from service.client import Mirage

TESTS = Path(__file__).parent
# found before the real one, as the working directory comes first in the path of `python -m worker`
WORKER = """
import asyncio, sys
sys.path.insert(0, {tests!r})
from fake_worker import FakeWorker
from service.settings import load_settings
asyncio.run(FakeWorker(load_settings()).run())
"""


class NeverReady(Exception):
    """`mirage up` ended; what it said."""


class Up:
    """A running `mirage up` and the processes it started."""

    def __init__(self, folder: Path) -> None:
        clean = {key: text for key, text in os.environ.items() if not key.startswith("MIRAGE_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "service.cli", "up", "--port", "0", "--data-dir", "data"],
            cwd=folder,
            env={**clean, "MIRAGE_LEASE_S": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
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
    (package / "__main__.py").write_text(WORKER.format(tests=str(TESTS)))
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
