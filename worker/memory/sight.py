"""How a memory's points are looked at: by kernels compiled for a CPU or a GPU, else by plain torch.

All obey the rules of worker/splat/plain.py and agree bit for bit. Plain torch reads the public
code's convention, which checkpoints trained with it expect, and on a GPU the `soft` mode and
whatever runs where Triton isn't installed.

Axis legend: T cameras, h w the latent grid, C channels, n points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worker.geometry import Cameras, Convention
from worker.memory.base import Readout
from worker.memory.points import Points
from worker.placed import FINER
from worker.projection import quality_of
from worker.splat import cpu as splat_cpu
from worker.splat.columns import Blocks, Frames, Rows, Stored
from worker.splat.cpu import Surface
from worker.splat.plain import Mode, Splat, accumulate, splat

HAS_TRITON = find_spec("triton") is not None


def see(
    points: Points,
    cameras: Cameras,  # (T,) at the grid's size
    mode: Mode,
    convention: Convention = "centre",
    with_tokens: bool = True,
) -> Surface:
    """What the cameras see; without tokens the surfaces alone, of `nearest` or `layers`."""
    device = cameras.intrinsics.device.type
    if device == "cuda" and is_fused(mode, convention):
        return see_together([points], cameras.reshape(1, -1), mode, with_tokens)
    if device == "cpu" and convention == "centre":
        tokens = stored(points) if with_tokens else None
        return splat_cpu.read(*columns(points), cameras, mode, tokens)
    return seen_by_torch(points, cameras, mode, convention, with_tokens)


def is_fused(mode: Mode, convention: Convention) -> bool:
    """Whether a GPU reads this way by the fused kernels."""
    return HAS_TRITON and mode != "soft" and convention == "centre"


def see_together(
    sessions: Sequence[Points], cameras: Cameras, mode: Mode, with_tokens: bool = True
) -> Surface:
    """What cameras (s, T) see of as many sessions on a GPU: fields of (s * T, ...)."""
    from worker.splat import gpu as splat_gpu  # imports Triton

    return splat_gpu.read(splat_gpu.batch_of(sessions), cameras, mode, with_tokens)


def columns(points: Points) -> tuple[Rows, Blocks, Frames]:
    """The points as the compiled kernels take them."""
    rows, blocks, frames = points.rows, points.blocks, points.frames
    return (
        Rows(*(rows.array(name) for name in Rows._fields)),
        Blocks(*(blocks.array(name) for name in Blocks._fields)),
        Frames(
            frames.array("world_from_camera"),
            frames.array("intrinsics"),
            frames.array("source"),
            points.offset,
            points.grid[1],
        ),
    )


def stored(points: Points) -> Stored:
    """Their tokens, likewise."""
    tokens, channels = points.rows.array("tokens"), points["tokens"].shape[1]
    if points.token_format == "int8":
        return np.empty((0, channels), np.int16), tokens, points.rows.array("scale")
    return tokens, np.empty((0, channels), np.int8), np.empty(0, np.float32)


def seen_by_torch(
    points: Points,
    cameras: Cameras,
    mode: Mode,
    convention: Convention = "centre",
    with_tokens: bool = True,
) -> Surface:
    patches = points.patches()
    source = points.frames["source"][patches.frame]
    seen = splat(patches, points["quality"], source, cameras, mode, convention)
    return _surface(points, seen, source, with_tokens)


def _surface(points: Points, seen: Splat, source: Tensor, with_tokens: bool) -> Surface:
    behind = None
    if seen.behind is not None:
        behind = _surface(points, seen.behind, source, with_tokens)
    covered = seen.winner >= 0
    row = seen.winner.clamp(min=0)
    num_views, h, w = row.shape
    if with_tokens:
        scale = points["scale"] if "scale" in points.rows else None
        tokens = accumulate(seen, points["tokens"], scale=scale)
    else:
        tokens = torch.zeros(num_views, 0, h, w, device=row.device)

    def of_winner(column: Tensor, nothing: float) -> Tensor:
        return (
            torch.where(covered, column[row], nothing)
            if len(column)
            else column.new_full(row.shape, nothing)
        )

    return Surface(
        winner=seen.winner,
        source=of_winner(source.long(), -1),
        coverage=seen.coverage,
        depth=seen.depth,
        quality=of_winner(quality_of(points["quality"]), 0.0),
        offset=seen.offset,
        span=seen.span,
        tokens=tokens,
        behind=behind,
    )


def readout_of(seen: Surface) -> Readout:
    """What is seen, as the contract has it."""
    names = [field.name for field in fields(Surface) if field.name != "behind"]
    behind = None if seen.behind is None else readout_of(seen.behind)
    return Readout(**{name: getattr(seen, name) for name in names}, behind=behind)


def part_of(readout: Readout, views: slice) -> Readout:
    """Some of its views, without a finer look."""
    behind = None if readout.behind is None else part_of(readout.behind, views)
    names = [name for name, value in vars(readout).items() if isinstance(value, Tensor)]
    columns: dict[str, Any] = {name: getattr(readout, name)[views] for name in names}
    return Readout(**columns, behind=behind)


def finer_than(grid: tuple[int, int]) -> tuple[int, int]:
    return grid[0] * FINER, grid[1] * FINER
