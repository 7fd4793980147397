"""Closed loops, two protocols (and one variant), run through the engine as a session would be.

- observed: the outward leg is given as RGB-D observations (every third frame), the return leg is
  generated and scored on poses that were never observed. Measures the memory. `observed_pred` gives
  the same views without their depth.
- imagined: one true frame is given, everything else is generated; the return leg is scored.
  Measures the system.

A baseline sees the same frames with the same weights, seed and noise: `null` has no memory,
`last-frame` only that of the latest frame; both start from the last observed view. `rgb` remembers
coloured points of every pixel (in `observed_pred` with colours as latents keep them). Without a
denoiser: `readout` decodes a blend of what the latent memory shows, `moved` what the mover makes of
it. `no-fusion` is the latent memory without recognition (worker/eval/baselines.py).
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.backbones.mini import MiniBackbone, redrawn
from worker.conditioning import stacked
from worker.engine import Engine
from worker.eval.baselines import BASELINES
from worker.eval.metrics import psnr
from worker.geometry import Cameras, lift
from worker.memory.base import ReadMode, Readout, joined
from worker.pixels import from_uint8, to_uint8
from worker.scenes.paths import LoopKind, sample_cameras
from worker.scenes.render import render
from worker.scenes.scene import sample_scenes
from worker.world import Increment, World

OBSERVE_EVERY = 3
BARE = ("readout", "moved")  # these generate nothing
FORGETFUL = ("null", "last-frame")  # these start from the last observed view


@dataclass(frozen=True)
class Loop:
    """One held-out scene walked out and back: pose n - 1 - i is pose i again."""

    seed: int
    kind: LoopKind
    images: Tensor  # (n, 3, H, W) float32 in [-1, 1]
    depth: Tensor  # (n, H, W) metres
    cell_depth: Tensor  # (n, h, w) metres
    cell_valid: Tensor  # (n, h, w) bool
    cameras: Cameras  # (n,)

    @property
    def num_out(self) -> int:
        return (len(self.images) + 1) // 2


@dataclass(frozen=True)
class Walk:
    """What one method showed on the frames `index` of the loop."""

    index: list[int]
    images: Tensor  # (m, 3, H, W)
    readout: Readout  # what its memory held for those frames before they were generated
    depth: Tensor  # (m, h, w) metres, the head's on the generated latents
    s_per_frame: float
    read_s_per_frame: float  # what a `nearest` read takes (a bare readout's own for those)
    stages_s: dict[str, float]  # of it, each stage of the engine's step
    memory_bytes: int
    first_visit: dict[int, Tensor]  # frame -> (3, H, W) of the outward leg, where it was generated


def make_loop(seed: int, kind: LoopKind, num_frames: int, engine: Engine) -> Loop:
    scene = sample_scenes([seed])
    cameras = sample_cameras(scene, kind, num_frames, engine.cfg.height, engine.cfg.width, [seed])
    frames = render(scene, cameras)
    depth, views = frames.depth[0], cameras[0]
    lifted = lift(depth, views, engine.grid)
    return Loop(seed, kind, frames.rgb[0], depth, lifted.depth.float(), lifted.valid, views)


def observed(engine: Engine, loop: Loop, method: str, true_depth: bool, chunk: int) -> Walk:
    """The return leg after an outward leg of observations."""
    views = list(range(0, loop.num_out, OBSERVE_EVERY))
    memory = "latent" if method in BARE else method
    world = open_world(engine, loop, memory)
    for i in views[-1:] if method in FORGETFUL else views:
        image = to_uint8(loop.images[i : i + 1])[0]
        engine.observe(world, image, loop.cameras[i : i + 1], loop.depth[i] if true_depth else None)
    back = list(range(loop.num_out, len(loop.images)))
    if method in BARE:
        return bare_readout(engine, world, loop, back, method)
    return generate(engine, world, loop, back, chunk)


def imagined(engine: Engine, loop: Loop, method: str, chunk: int) -> Walk:
    """The whole loop from its first frame."""
    world = open_world(engine, loop, method)
    first = engine.observe(world, to_uint8(loop.images[:1])[0], loop.cameras[:1])
    walk = generate(engine, world, loop, list(range(1, len(loop.images))), chunk)
    walk.first_visit[0] = from_uint8(first.images)[0]
    for i, image in zip(walk.index, walk.images, strict=True):
        if i < loop.num_out:
            walk.first_visit[i] = image
    return walk


def open_world(engine: Engine, loop: Loop, memory: str) -> World:
    if memory not in BASELINES:
        return engine.open(loop.seed, memory)
    world = engine.open(loop.seed, "null")
    world.memory = BASELINES[memory](engine.backbone.channels, engine.grid)
    return world


def generate(engine: Engine, world: World, loop: Loop, frames: list[int], chunk: int) -> Walk:
    readouts: list[Readout] = []
    increments: list[Increment] = []
    started = time.perf_counter()
    read_s = 0.0
    for at in range(0, len(frames), chunk):
        views = loop.cameras[frames[at : at + chunk]]
        before = time.perf_counter()
        readouts.append(world.memory.read(views, "nearest"))  # for scoring only: off the clock
        read_s += time.perf_counter() - before
        increments += engine.step([world], [views])
    s_per_frame = (time.perf_counter() - started - read_s) / len(frames)
    images = torch.cat([from_uint8(increment.images) for increment in increments])
    latents = torch.cat([increment.latents for increment in increments]).float()
    seen, read_s_per_frame = joined(readouts), read_s / len(frames)
    with torch.inference_mode():
        depth, _ = engine.backbone.depth(latents, loop.cameras[frames], seen.depth)
    num_bytes = world.memory.stats().num_bytes
    stages_s = per_stage(increments, len(frames))
    return Walk(frames, images, seen, depth, s_per_frame, read_s_per_frame, stages_s, num_bytes, {})


def per_stage(increments: list[Increment], num_frames: int) -> dict[str, float]:
    """Seconds per frame of each stage; one increment is one step of one World."""
    total_ms: dict[str, float] = {}
    for increment in increments:
        for stage, spent_ms in increment.timings_ms.items():
            total_ms[stage] = total_ms.get(stage, 0.0) + spent_ms
    return {stage: spent_ms / 1000 / num_frames for stage, spent_ms in total_ms.items()}


def bare_readout(engine: Engine, world: World, loop: Loop, frames: list[int], method: str) -> Walk:
    backbone, started = engine.backbone, time.perf_counter()
    with torch.inference_mode():
        look: ReadMode = "soft" if method == "readout" else backbone.look
        readout = world.memory.read(loop.cameras[frames], look)
        read_s, tokens = time.perf_counter() - started, readout.tokens
        if method == "moved":
            assert isinstance(backbone, MiniBackbone)
            (tokens,) = redrawn(backbone.codec, *stacked([readout]))
        images = backbone.decode(tokens).clamp(-1, 1)
    s_per_frame, read_s = (time.perf_counter() - started) / len(frames), read_s / len(frames)
    num_bytes = world.memory.stats().num_bytes
    return Walk(frames, images, readout, readout.depth, s_per_frame, read_s, {}, num_bytes, {})


def drift(engine: Engine, loop: Loop, rounds: int, chunk: int) -> list[float]:
    """PSNR of each further round of the same imagined loop against its first: how fast a world
    changes that is looked at again and again.
    """
    world = open_world(engine, loop, "latent")
    engine.observe(world, to_uint8(loop.images[:1])[0], loop.cameras[:1])
    frames = list(range(1, len(loop.images)))
    first = generate(engine, world, loop, frames, chunk).images
    again = (generate(engine, world, loop, frames, chunk).images for _ in range(1, rounds))
    return [float(psnr(images, first).mean()) for images in again]
