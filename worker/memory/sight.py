"""How a memory's points are looked at: by compiled kernels on a CPU, by plain torch elsewhere.

Both obey the rules of worker/splat.py and agree bit for bit; the public code's convention, which
checkpoints trained with it expect, is read by plain torch everywhere.

Axis legend: T cameras, h w the latent grid, C channels, n points.
"""

from __future__ import annotations

import torch
from torch import Tensor

from worker import splat_cpu
from worker.geometry import Cameras, Convention
from worker.memory.points import Points
from worker.projection import quality_of
from worker.splat import Mode, accumulate, splat
from worker.splat_cpu import Surface, Tokens
from worker.splat_kernels import Blocks, Frames, Rows


def see(
    points: Points,
    cameras: Cameras,  # (T,) at the grid's size
    mode: Mode,
    convention: Convention = "centre",
    with_tokens: bool = True,
) -> Surface:
    """What the cameras see; without tokens the surface alone, and `mode` says nothing."""
    if cameras.intrinsics.device.type == "cpu" and convention == "centre":
        tokens = Tokens(points["tokens"], points["scale"] if "scale" in points.rows else None)
        return splat_cpu.read(*columns(points), cameras, mode, tokens if with_tokens else None)
    return seen_by_torch(points, cameras, mode, convention, with_tokens)


def columns(points: Points) -> tuple[Rows, Blocks, Frames]:
    """The points as the compiled kernels take them."""
    frames, height_width = points.frames, points.grid
    return (
        Rows(*(points[name].numpy() for name in Rows._fields)),
        Blocks(*(points.blocks[name].numpy() for name in Blocks._fields)),
        Frames(
            frames["world_from_camera"].numpy(),
            frames["intrinsics"].numpy(),
            frames["source"].numpy(),
            points.offset,
            height_width[1],
        ),
    )


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
    )
