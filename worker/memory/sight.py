"""How a memory's points are looked at: by kernels compiled for a CPU or a GPU, else by plain torch.

All obey the rules of worker/splat/plain.py and agree bit for bit. Plain torch reads the public
code's convention, which checkpoints trained with it expect, and on a GPU the `soft` mode and
whatever runs where Triton isn't installed.

Axis legend: T cameras, h w the latent grid, C channels, n points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
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
    cameras: Cameras,  # (T,)
    mode: Mode,
    convention: Convention = "centre",
    with_tokens: bool = True,
    in_parts: bool = False,
) -> Surface:
    """What the cameras see; without tokens the surfaces alone. In parts, those of every cell
    whose depths are known are looked at one by one. Neither goes with `soft`.
    """
    device, in_parts = cameras.intrinsics.device.type, in_parts and points.num_parts > 0
    if device == "cuda" and is_fused(mode, convention):
        return see_together([points], cameras.reshape(1, -1), mode, with_tokens, in_parts)
    if device == "cpu" and convention == "centre":
        tokens = stored(points) if with_tokens else None
        return splat_cpu.read(*columns(points, in_parts), cameras, mode, tokens)
    return seen_by_torch(points, cameras, mode, convention, with_tokens, in_parts)


def is_fused(mode: Mode, convention: Convention) -> bool:
    """Whether a GPU reads this way by the fused kernels."""
    return HAS_TRITON and mode != "soft" and convention == "centre"


def see_together(
    sessions: Sequence[Points],
    cameras: Cameras,
    mode: Mode,
    with_tokens: bool = True,
    in_parts: bool = False,
) -> Surface:
    """What cameras (s, T) see of as many sessions on a GPU: fields of (s * T, ...)."""
    from worker.splat import gpu as splat_gpu  # imports Triton

    return splat_gpu.read(splat_gpu.batch_of(sessions), cameras, mode, with_tokens, in_parts)


def columns(points: Points, in_parts: bool = False) -> tuple[Rows, Blocks, Frames]:
    """The points as the compiled kernels take them."""
    rows, blocks, frames = points.rows, points.blocks, points.frames
    lens = frames.array("intrinsics")
    return (
        Rows(*(rows.array(name) for name in Rows._fields)),
        Blocks(*(blocks.array(name) for name in Blocks._fields)),
        Frames(
            frames.array("world_from_camera"),
            lens * FINER if in_parts else lens,
            frames.array("source"),
            points.offset,
            points.grid[1],
            points.num_parts if in_parts else 1,
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
    in_parts: bool = False,
) -> Surface:
    patches, parts = points.patches(in_parts=in_parts), points.num_parts if in_parts else 1
    source = points.frames["source"][patches.frame]
    quality = points["quality"].repeat_interleave(parts)
    seen = splat(patches, quality, source, cameras, mode, convention)
    return _surface(points, seen, source[::parts], with_tokens, parts)


def _surface(points: Points, seen: Splat, source: Tensor, with_tokens: bool, parts: int) -> Surface:
    second = None
    if seen.second is not None:
        second = _surface(points, seen.second, source, with_tokens, parts)
    covered = seen.winner >= 0
    first = seen.winner.clamp(min=0)
    row = torch.div(first, parts, rounding_mode="floor")
    num_views, h, w = row.shape
    if with_tokens:
        scale = points["scale"] if "scale" in points.rows else None
        point = torch.div(seen.fragments.point, parts, rounding_mode="floor")
        shown = replace(seen, fragments=replace(seen.fragments, point=point))
        tokens = accumulate(shown, points["tokens"], scale=scale)
    else:
        tokens = torch.zeros(num_views, 0, h, w, device=row.device)

    def of_winner(column: Tensor, nothing: float) -> Tensor:
        return (
            torch.where(covered, column[row], nothing)
            if len(column)
            else column.new_full(row.shape, nothing)
        )

    left = of_winner(points["quality"].long(), 0) - seen.aside
    return Surface(
        winner=torch.where(covered, row, -1),
        source=of_winner(source.long(), -1),
        coverage=seen.coverage,
        depth=seen.depth,
        quality=torch.where(covered, quality_of(left.clamp(min=0)), 0.0),
        offset=seen.offset,
        span=seen.span,
        tokens=tokens,
        part=first % parts if parts > 1 else None,
        second=second,
    )


def readout_of(seen: Surface) -> Readout:
    """What is seen, as the contract has it."""
    names = [field.name for field in fields(Surface) if field.name != "second"]
    second = None if seen.second is None else readout_of(seen.second)
    return Readout(**{name: getattr(seen, name) for name in names}, second=second)


def part_of(readout: Readout, views: slice) -> Readout:
    """Some of its views, without a finer look."""
    second = None if readout.second is None else part_of(readout.second, views)
    names = [name for name, value in vars(readout).items() if isinstance(value, Tensor)]
    columns: dict[str, Any] = {name: getattr(readout, name)[views] for name in names}
    return Readout(**columns, second=second)


def finer_than(grid: tuple[int, int]) -> tuple[int, int]:
    return grid[0] * FINER, grid[1] * FINER
