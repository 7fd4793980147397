"""How a memory's points are looked at: by kernels compiled for a CPU or a GPU, else by plain torch.

All obey the rules of worker/splat.py and agree bit for bit. Plain torch reads the public code's
convention, which checkpoints trained with it expect, and on a GPU the `soft` mode and whatever runs
where Triton isn't installed.

Axis legend: T cameras, h w the latent grid, C channels, n points.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

import torch
from torch import Tensor

from worker import splat_cpu
from worker.geometry import Cameras, Convention
from worker.memory.points import Points
from worker.projection import quality_of
from worker.splat import Mode, accumulate, splat
from worker.splat_cpu import Surface, Tokens
from worker.splat_kernels import Blocks, Frames, Rows

HAS_TRITON = find_spec("triton") is not None


def see(
    points: Points,
    cameras: Cameras,  # (T,) at the grid's size
    mode: Mode,
    convention: Convention = "centre",
    with_tokens: bool = True,
) -> Surface:
    """What the cameras see; without tokens the surface alone, and `mode` says nothing."""
    device = cameras.intrinsics.device.type
    if device == "cuda" and is_fused(mode if with_tokens else "nearest", convention):
        return see_together([points], cameras.reshape(1, -1), with_tokens)
    if device == "cpu" and convention == "centre":
        tokens = Tokens(points["tokens"], points["scale"] if "scale" in points.rows else None)
        return splat_cpu.read(*columns(points), cameras, mode, tokens if with_tokens else None)
    return seen_by_torch(points, cameras, mode, convention, with_tokens)


def is_fused(mode: Mode, convention: Convention) -> bool:
    """Whether a GPU reads this way by the fused kernels."""
    return HAS_TRITON and mode == "nearest" and convention == "centre"


def see_together(sessions: Sequence[Points], cameras: Cameras, with_tokens: bool = True) -> Surface:
    """What cameras (s, T) see of as many sessions on a GPU: fields of (s * T, ...)."""
    from worker import splat_gpu  # imports Triton

    return splat_gpu.read(splat_gpu.batch_of(sessions), cameras, with_tokens)


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
