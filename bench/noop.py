"""A real worker whose model costs nothing: for measuring, and for killing, everything around it.

`python -m bench.noop --step-ms 5` serves like `python -m worker`, with the engine, the memory and a
backbone of a few lines: a deterministic function of noise, readout, preceding latents and cameras,
so that a lost or repeated step shows. `--still` leaves out the method as well: every frame is one
plain picture and nothing is remembered; what remains is the service. Segments, commits, leases and
encoding are the real ones in both. `--step-ms` is slept in each step, as on a GPU.
"""

from __future__ import annotations

import argparse
import ctypes
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess

import torch
import uvicorn
from torch import Tensor
from torch.nn import functional

from service.app import create_app
from service.runtime import run, settle_heap
from service.settings import Settings, load_settings
from service.telemetry import configure_logging
from worker.__main__ import serve
from worker.backbones.base import Condition
from worker.engine import Engine, EngineConfig
from worker.geometry import Cameras
from worker.memory.base import ReadMode, empty_delta
from worker.observation import Looks
from worker.serving.faults import parse_fault
from worker.world import Increment, World

PR_SET_PDEATHSIG = 1
HEIGHT, WIDTH = 32, 64  # of tests


class NoopBackbone:
    """`step_s`: how long a chunk takes, whatever its batch."""

    weights = "noop@0"
    continues: frozenset[str] = frozenset()
    channels = 16
    stride = 8
    sees_motion = False
    look: ReadMode = "nearest"

    def __init__(self, step_s: float = 0.0) -> None:
        self.step_s = step_s

    def encode(self, images: Tensor) -> Tensor:
        return functional.avg_pool2d(images, self.stride).repeat(1, 6, 1, 1)[:, : self.channels]

    def denoise(self, condition: Condition, noise: Tensor) -> Tensor:
        time.sleep(self.step_s)
        front = condition.front
        covered = front.coverage[:, :, None]
        height_m = condition.cameras.world_from_camera[..., 2, 3].float()[..., None, None, None]
        before = condition.recent.mean(dim=1, keepdim=True)
        return covered * front.tokens + (1 - covered) * (
            0.3 * noise + 0.5 * before + height_m.sin() / 10
        )

    def decode(self, latents: Tensor) -> Tensor:
        return functional.interpolate(latents[:, :3], scale_factor=self.stride)

    def depth(
        self, latents: Tensor, cameras: Cameras, hint: Tensor, pictures: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        return 3 + latents[:, 3].tanh(), torch.full_like(latents[:, 0], 0.9)

    def refine(self, pictures: Tensor, cameras: Cameras, closer: Tensor, rough: Tensor) -> Tensor:
        return closer

    def motion(self, pictures: Tensor, depth: Tensor, cameras: Cameras) -> Tensor:
        return torch.zeros_like(depth[:, ::2, ::2])


class StillEngine(Engine):
    """Frames without a method: plain pictures, latents of one cell, no memory."""

    def __init__(self, backbone: NoopBackbone, cfg: EngineConfig) -> None:
        super().__init__(backbone, cfg)
        self._step_s = backbone.step_s
        self._images = torch.full((1, cfg.height, cfg.width, 3), 128, dtype=torch.uint8)
        self._latents = torch.zeros(1, backbone.channels, 1, 1, dtype=torch.bfloat16)
        self._coverage = torch.ones(1, 1, 1)
        self._delta = empty_delta(backbone.channels)

    def open(self, seed: int, memory: str = "null") -> World:
        return super().open(seed, "null")

    def encode(self, images: Sequence[Tensor], guessed: Sequence[bool]) -> list[Looks]:
        return [Looks(self._latents, None)] * len(images)

    def observe(
        self, world: World, image: Tensor, camera: Cameras, *more: object, **further: object
    ) -> Increment:
        return self._still(world, camera, shown=world.next_frame == 0)

    def step(self, worlds: Sequence[World], cameras: Sequence[Cameras]) -> list[Increment]:
        if self._step_s:
            time.sleep(self._step_s)
        return [self._still(*pair, shown=True) for pair in zip(worlds, cameras, strict=True)]

    def _still(self, world: World, views: Cameras, shown: bool) -> Increment:
        count = len(views)
        numbers = tuple(range(world.next_frame, world.next_frame + count)) if shown else ()
        increment = Increment(
            self._delta,
            numbers,
            self._images.expand(count, -1, -1, -1),
            views,
            self._latents.expand(count, -1, -1, -1),
            self._coverage.expand(count, -1, -1),
            {},
        )
        world.next_source += count
        world.next_frame += len(numbers)
        return increment


def noop_engine(
    backbone: NoopBackbone | None = None,
    height: int = HEIGHT,
    width: int = WIDTH,
    still: bool = False,
    deterministic: bool = True,
) -> Engine:
    cfg = EngineConfig(height=height, width=width, deterministic=deterministic)
    return (StillEngine if still else Engine)(backbone or NoopBackbone(), cfg)


def serve_noop(settings: Settings, fault: str = "", step_s: float = 0.0) -> None:
    """A worker until SIGTERM, in this process."""
    torch.set_num_threads(1)
    configure_logging(settings.log_level)
    size = settings.frame_height, settings.frame_width
    backbone = NoopBackbone(step_s)
    engine = noop_engine(backbone, *size, deterministic=settings.deterministic)
    run(serve(settings, engine, parse_fault(fault)))


def serve_gateway(settings: Settings) -> None:
    """A gateway until SIGTERM, in this process."""
    configure_logging(settings.log_level)
    config = uvicorn.Config(
        create_app(settings),
        port=settings.port,
        log_config=None,
        access_log=False,
        ws="websockets-sansio",
        timeout_graceful_shutdown=1,
    )
    uvicorn.Server(config).run()


def start_worker(settings: Settings, fault: str = "", step_s: float = 0.0) -> BaseProcess:
    """A worker as a process of its own, forked from one that has torch loaded: in milliseconds."""
    return _start(serve_noop, settings, fault, step_s)


def start_gateway(settings: Settings) -> BaseProcess:
    """A gateway as a process of its own."""
    return _start(serve_gateway, settings)


def warm_up() -> None:
    """Load everything once, in the process that all others are forked from; takes seconds."""
    _start(bool).join()


def _start(target: Callable[..., object], *args: object) -> BaseProcess:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bench.noop"])
    process = context.Process(target=_child, args=(target, *args), daemon=True)
    process.start()
    return process


def _child(target: Callable[..., object], *args: object) -> None:
    """Runs in the new process, which dies with the one it was forked from, and that with us."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    target(*args)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.noop", description=__doc__)
    parser.add_argument("--step-ms", type=float, default=0.0, help="of each step")
    parser.add_argument("--still", action="store_true", help="no engine, no memory: service alone")
    args = parser.parse_args()
    torch.set_num_threads(1)
    settings = load_settings()
    configure_logging(settings.log_level)
    size = settings.frame_height, settings.frame_width
    engine = noop_engine(NoopBackbone(args.step_ms / 1e3), *size, still=args.still)
    settle_heap()
    run(serve(settings, engine, parse_fault(os.environ.get("MIRAGE_FAULT", ""))))


if __name__ == "__main__":
    main()
