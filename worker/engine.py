"""The method: read the memory, generate the chunk, decode it, estimate its depth, remember it.

The world is never rendered to pixels and encoded again: what the memory shows to the new cameras is already in the denoiser's
language. All calls are batched over sessions; each session's result is a function of its own World alone (in deterministic
mode bit for bit, since then sessions are computed one at a time).

Axis legend: b sessions, t frames of a chunk, p preceding frames, c channels, h w latent grid, H W pixels.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.backbones.base import Backbone, Condition
from worker.depth.align import align_depth
from worker.geometry import Cameras
from worker.memory import create_memory
from worker.memory.base import Readout
from worker.world import Increment, World, frame_noise


@dataclass(frozen=True)
class EngineConfig:
    height: int = 128
    width: int = 192
    num_recent: int = 1  # preceding frames shown to the denoiser
    deterministic: bool = False
    device: str = "cpu"


class NotObservedError(ValueError):
    """A chunk was asked of a World that has not seen its first image."""


class Engine:
    """Steps Worlds; owns no session."""

    def __init__(self, backbone: Backbone, cfg: EngineConfig) -> None:
        self.backbone, self.cfg = backbone, cfg
        self.grid = (cfg.height // backbone.stride, cfg.width // backbone.stride)

    def open(self, seed: int, memory: str = "latent") -> World:
        """An empty World; `observe` gives it its first image."""
        store = create_memory(memory, self.backbone.channels, self.grid, self.cfg.device)
        return World(store, seed, self.cfg.num_recent)

    @torch.inference_mode()
    def observe(
        self,
        world: World,
        image: Tensor,  # (H, W, 3) uint8
        camera: Cameras,  # (1,)
        depth: Tensor | None = None,  # (H', W') z-depth in metres; 0 or NaN = unknown
        mask: Tensor | None = None,  # (H', W') True = keep out of the memory (moving, sky)
    ) -> Increment:
        """Write what was really seen. The first image becomes frame 0; later ones only inform the memory."""
        clock = Clock()
        with clock("encode"):
            pixels = image.to(self.cfg.device).permute(2, 0, 1)[None].float() / 127.5 - 1
            latents = self.backbone.encode(pixels)
        confidence = None
        if depth is None:
            with clock("depth"):
                readout = world.memory.read(camera)
                estimate, confidence = self._depth(latents, camera, readout)
        else:
            estimate = depth[None].to(self.cfg.device)
        with clock("write"):
            latents = latents.bfloat16()
            delta = world.memory.write(
                latents,
                estimate,
                camera,
                [world.next_source],
                confidence=confidence,
                mask=None if mask is None else mask[None],
                observed=True,
            )
        first = world.next_frame == 0
        coverage = torch.ones(1, *self.grid)
        with clock("decode"):
            images = to_uint8(self.backbone.decode(latents.float()))
        shown = (0,) if first else ()
        increment = Increment(delta, shown, images, camera, latents, coverage, clock.timings_ms)
        world.apply(increment)
        return increment

    def step(self, worlds: Sequence[World], cameras: Sequence[Cameras]) -> list[Increment]:
        """Generate one chunk for each World, seen by its cameras (t,); t is the same for all."""
        if self.cfg.deterministic:
            return [
                self._step([world], [views])[0]
                for world, views in zip(worlds, cameras, strict=True)
            ]
        return self._step(worlds, cameras)

    @torch.inference_mode()
    def _step(self, worlds: Sequence[World], cameras: Sequence[Cameras]) -> list[Increment]:
        clock = Clock()
        with clock("read"):
            readouts = [
                world.memory.read(views) for world, views in zip(worlds, cameras, strict=True)
            ]
        with clock("denoise"):
            condition = self._condition(worlds, cameras, readouts)
            noise = torch.stack([self._noise(w, len(c)) for w, c in zip(worlds, cameras, strict=True)])
            latents = self.backbone.denoise(condition, noise)
        with clock("decode"):
            images = to_uint8(self.backbone.decode(latents.flatten(0, 1))).unflatten(
                0, latents.shape[:2]
            )
        increments = []
        for world, views, readout, chunk, frames in zip(
            worlds, cameras, readouts, latents.bfloat16(), images, strict=True
        ):
            with clock("depth"):
                depth, confidence = self._depth(chunk.float(), views, readout)
            with clock("write"):
                sources = [world.next_source + i for i in range(len(views))]
                delta = world.memory.write(
                    chunk, depth, views, sources, confidence=confidence, observed=False
                )
            shown = tuple(world.next_frame + i for i in range(len(views)))
            increment = Increment(
                delta, shown, frames, views, chunk, readout.coverage.cpu(), clock.timings_ms
            )
            world.apply(increment)
            increments.append(increment)
        return increments

    def replay(self, world: World, increment: Increment) -> None:
        """Repeat on a restored World what `observe` or `step` did."""
        world.memory.apply(increment.delta)
        world.apply(increment)

    def _condition(
        self, worlds: Sequence[World], cameras: Sequence[Cameras], readouts: Sequence[Readout]
    ) -> Condition:
        recent, recent_cameras = [], []
        for world in worlds:
            if world.latents is None or world.cameras is None:
                raise NotObservedError("this World has no frame yet: observe an image first")
            recent.append(world.latents.float())
            recent_cameras.append(world.cameras)
        return Condition(
            tokens=torch.stack([readout.tokens for readout in readouts]),
            coverage=torch.stack([readout.coverage for readout in readouts]),
            depth=torch.stack([readout.depth for readout in readouts]),
            cameras=stack_cameras(cameras).resized(*self.grid),
            recent=torch.stack(recent).to(self.cfg.device),
            recent_cameras=stack_cameras(recent_cameras).resized(*self.grid),
        )

    def _noise(self, world: World, num_frames: int) -> Tensor:
        shape = (self.backbone.channels, *self.grid)
        frames = [frame_noise(world.seed, world.next_frame + i, shape) for i in range(num_frames)]
        return torch.stack(frames).to(self.cfg.device)

    def _depth(self, latents: Tensor, cameras: Cameras, readout: Readout) -> tuple[Tensor, Tensor]:
        """Depth of latents (t, c, h, w), each frame's scale aligned to what the memory knows there."""
        depth, confidence = self.backbone.depth(latents, cameras)
        aligned = [
            align_depth(guess, known, covered)[0]
            for guess, known, covered in zip(depth, readout.depth, readout.coverage, strict=True)
        ]
        return torch.stack(aligned), confidence


class Clock:
    """Adds up wall-clock milliseconds per stage."""

    def __init__(self) -> None:
        self.timings_ms: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        spent_ms = 1e3 * (time.perf_counter() - started)
        self.timings_ms[stage] = self.timings_ms.get(stage, 0.0) + spent_ms


def stack_cameras(parts: Sequence[Cameras]) -> Cameras:
    """Cameras (t,) of each session -> (b, t)."""
    return Cameras(
        torch.stack([part.intrinsics for part in parts]),
        torch.stack([part.world_from_camera for part in parts]),
        parts[0].height,
        parts[0].width,
    )


def to_uint8(pixels: Tensor) -> Tensor:
    """(n, 3, H, W) in [-1, 1] -> (n, H, W, 3) uint8 on the CPU, rounded to the nearest level."""
    levels = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round()
    return levels.byte().permute(0, 2, 3, 1).cpu()
