"""From one image, around the corner and back: the shipped model behind the real service, all
processes real.

A sample world is walked out and back with memory and without; then the worker is killed and the
world goes on.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from service.client import Mirage, World
from service.poses import Action, expand

SAMPLE = "doorway"
NUM_OUT = 4
WALK_OUT = Action(forward_m=0.4, yaw_deg=20.0)


@pytest.fixture(scope="module")
def mirage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mirage]:
    """A client of a running `mirage up` with the shipped weights."""
    clean = {key: text for key, text in os.environ.items() if not key.startswith("MIRAGE_")}
    server = subprocess.Popen(
        [sys.executable, "-m", "service.cli", "up", "--port", "0", "--data-dir", "data"],
        cwd=tmp_path_factory.mktemp("up"),
        env=clean | {"PYTHONPATH": str(Path(__file__).parent.parent), "MIRAGE_LEASE_S": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    try:
        line = next(line for line in server.stdout if "ready: " in line)
        with Mirage(line.partition("ready: ")[2].split()[0]) as client:
            yield client
    finally:
        server.send_signal(signal.SIGINT)
        server.communicate(timeout=60)


def out_and_back() -> np.ndarray:
    """(2 * NUM_OUT + 1, 4, 4) poses; the first and the last are where the image was taken."""
    out = expand(np.eye(4), [WALK_OUT], 1.0, WALK_OUT.yaw_deg / NUM_OUT, 100)
    there = np.concatenate([np.eye(4)[None], out])
    return np.concatenate([there, there[-2::-1]])


def walked(world: World) -> list[np.ndarray]:
    """All frames of the walk as pictures (H, W, 3) in [0, 1], checked to be numbered in order."""
    generation = world.generate(poses=list(out_and_back()[1:]))
    made = list(generation.frames())
    frames = [world.frame(0), *made]
    assert [frame.number for frame in frames] == list(range(len(out_and_back())))
    return [frame.pixels() / 255.0 for frame in frames]


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(-10 * np.log10(np.mean((a - b) ** 2)))


def test_a_corner_that_is_left_is_there_on_return(mirage: Mirage) -> None:
    pictures = {}
    for memory in ("latent", "rgb", "null"):
        world = mirage.create(sample=SAMPLE, seed=1, memory=memory)
        pictures[memory] = walked(world)
        remembered = world.memory()["num_points"]
        assert (remembered > 0) == (memory != "null")
        world.delete()
    alike = {memory: psnr(one[0], one[-1]) for memory, one in pictures.items()}
    with_memory, without = alike["latent"], alike["null"]
    assert min(with_memory, alike["rgb"]) > 26
    assert with_memory > without + 6


def test_a_world_outlives_its_worker(mirage: Mirage) -> None:
    world = mirage.create(sample=SAMPLE, seed=2)
    poses = out_and_back()
    first = [frame.number for frame in world.generate(poses=list(poses[1:5])).frames()]
    kill_worker()
    second = [frame.number for frame in world.generate(poses=list(poses[5:])).frames()]
    assert first + second == list(range(1, len(poses)))
    ends = [world.frame(number).pixels() / 255.0 for number in (0, second[-1])]
    assert psnr(*ends) > 26
    world.delete()


def kill_worker() -> None:
    """SIGKILL the worker that this test's server started."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            grandparent = int(
                Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[1]
            )
        except (FileNotFoundError, ProcessLookupError):
            continue
        if words[1:3] == [b"-m", b"worker"] and grandparent == os.getpid():
            os.kill(int(process.name), signal.SIGKILL)
            return
    pytest.fail("no worker is running")
