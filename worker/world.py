"""A World: everything one session must remember between chunks, and the Increment that each step
adds to it.

A World is nothing but the replay of its increments, so any worker that has them can continue it bit
for bit. Noise is a function of (seed, frame index) alone; no generator state is kept.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from worker.geometry import Cameras, cat_cameras
from worker.memory.base import Delta, Memory


@dataclass(frozen=True)
class Increment:
    """What one observation or one chunk added to a World; immutable once made, the payload of a
    segment.
    """

    delta: Delta
    frame_indices: tuple[int, ...]  # of the frames shown; empty for an observation that shows none
    images: Tensor  # (frames shown, H, W, 3) uint8 on the CPU
    cameras: Cameras  # (t,) at the frames' size
    latents: Tensor  # (t, c, h, w) bfloat16: what the next chunk is preceded by
    coverage: Tensor  # (t, h, w) float32: how much of each frame the memory knew beforehand
    timings_ms: dict[str, float]  # per stage, for the whole batch that this step was part of
    depth: Tensor | None = None  # (t, h, w) float16, metres, as estimated; for clients alone

    def to(self, device: str) -> Increment:
        if self.latents.device == torch.device(device):
            return self
        delta = Delta(*(getattr(self.delta, one.name).to(device) for one in fields(Delta)))
        return replace(self, delta=delta, latents=self.latents.to(device))


@dataclass
class World:
    """One session's state on a device."""

    memory: Memory
    seed: int
    num_recent: int
    next_frame: int = 0
    next_source: int = 0  # frames and observations are numbered together as sources of points
    latents: Tensor | None = None  # (p, c, h, w) of the latest views, oldest first
    cameras: Cameras | None = None  # (p,) and their cameras

    def apply(self, increment: Increment) -> None:
        """Advance by an increment whose delta the memory already holds."""
        self.next_source += len(increment.latents)
        self.next_frame += len(increment.frame_indices)
        latents, cameras = increment.latents, increment.cameras
        if self.latents is not None and self.cameras is not None:
            latents = torch.cat([self.latents, latents.to(self.latents.device)])
            cameras = cat_cameras([self.cameras, cameras])
        # A young World repeats its oldest view, so that Worlds of any age batch together.
        latest = torch.arange(len(latents) - self.num_recent, len(latents)).clamp(min=0)
        self.latents, self.cameras = latents[latest], cameras[latest]
