"""What the denoiser is told: readouts, cameras, preceding latents and noise of several Worlds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from worker.backbones.base import Condition
from worker.geometry import Cameras, stack_cameras
from worker.memory.base import Readout
from worker.placed import Placed, middle_of
from worker.world import World

NAMES = ("tokens", "coverage", "depth", "offset", "span")


class NotObservedError(ValueError):
    """A chunk was asked of a World that has not seen its first image."""


def condition_on(
    worlds: Sequence[World],
    cameras: Sequence[Cameras],  # (t,) of each World
    readouts: Sequence[Readout],  # of these cameras
    grid: tuple[int, int],
) -> Condition:
    """Batch b Worlds; raises NotObservedError."""
    recent, recent_cameras = [], []
    for world in worlds:
        if world.latents is None or world.cameras is None:
            raise NotObservedError("this World has no frame yet: observe an image first")
        recent.append(world.latents.float())
        recent_cameras.append(world.cameras)
    front, finer = stacked(readouts)
    return Condition(
        front,
        cameras=stack_cameras(cameras).resized(*grid),
        recent=torch.stack(recent).to(front.tokens.device),
        recent_cameras=stack_cameras(recent_cameras).resized(*grid),
        finer=finer,
    )


def stacked(readouts: Sequence[Readout]) -> tuple[Placed, Placed | None]:
    """Readouts (t, ...) of b Worlds as (b, t, ...): the front surface, and what a finer look shows
    if all have it.
    """
    finer = [readout.finer for readout in readouts if readout.finer is not None]
    return _placed(readouts), _placed(finer) if len(finer) == len(readouts) else None


def _placed(layers: Sequence[Readout]) -> Placed:
    second = [layer.second for layer in layers if layer.second is not None]
    columns = {name: torch.stack([getattr(layer, name) for layer in layers]) for name in NAMES}
    parts = [layer.part for layer in layers if layer.part is not None]
    within = middle_of(torch.stack(parts)) if parts else None
    return Placed(**columns, within=within, second=_placed(second) if second else None)


def chunk_noise(world: World, like: Tensor) -> Tensor:
    """Standard normal noise (t, c, h, w) of the World's next t frames."""
    frames = range(world.next_frame, world.next_frame + len(like))
    noise = [frame_noise(world.seed, frame, tuple(like.shape[1:])) for frame in frames]
    return torch.stack(noise).to(like.device)


def frame_noise(seed: int, frame: int, shape: tuple[int, ...]) -> Tensor:
    """Noise of one frame: the same on every device, in every batch and after every restore."""
    philox = np.random.Philox(key=np.array([seed % 2**64, frame], dtype=np.uint64))
    return torch.from_numpy(np.random.Generator(philox).standard_normal(shape, dtype=np.float32))
