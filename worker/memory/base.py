"""The contract between a memory and the engine: tensors and Cameras in, tensors out.

`read` mutates nothing. `write` and `forget` compute a Delta, apply it and return it, so that a
memory restored by `apply`ing its deltas in order is bit-equal to the one that wrote them. Memories
know nothing of paths, images or models.

Axis legend: T cameras or frames, h w the latent grid, C channels, n points added, m removed, k
struck.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from worker.geometry import Cameras
from worker.placed import FINER

# `fine` is `nearest` with `finer`, for who can use more than one token per cell.
ReadMode = Literal["soft", "nearest", "fine"]


@dataclass(frozen=True)
class Readout:
    """What a memory shows to T cameras."""

    tokens: Tensor  # (T, C, h, w) float32, 0 where uncovered
    coverage: Tensor  # (T, h, w) float32: 1 on a remembered surface, 0.5 just beside one, else 0
    depth: Tensor  # (T, h, w) float32 z-depth of the front surface in metres, 0 where uncovered
    winner: Tensor  # (T, h, w) int64 row of the winning point, -1 where uncovered
    source: Tensor  # (T, h, w) int64 frame that the winner was seen in, -1 where uncovered
    quality: Tensor  # (T, h, w) float32 of the winner, 0 where uncovered
    offset: (
        Tensor  # (T, 2, h, w) float32 cells in u, v from the cell's centre to the winner's, or 0
    )
    span: Tensor  # (T, 2, h, w) float32 cells in u, v that the winner's patch spans, 0 if uncovered
    part: Tensor | None = None  # of `finer` alone: (T, h, w) int64 which part of the winner's patch
    finer: Readout | None = None  # in `fine` mode: the same views at FINER times the resolution
    second: Readout | None = None  # of `finer` alone: what another frame tells, or what lies behind


def joined(parts: Sequence[Readout]) -> Readout:
    """All their views as one readout, without what a finer look shows."""
    names = [name for name, value in vars(parts[0]).items() if isinstance(value, Tensor)]
    columns: dict[str, Any] = {n: torch.cat([getattr(part, n) for part in parts]) for n in names}
    return Readout(**columns)


@dataclass(frozen=True)
class Delta:
    """What one write changed.

    A point is a cell of one of the written frames: its id is the frame's serial number times h * w
    plus the cell, so ids ascend and are never reused.
    """

    ids: Tensor  # (n,) int64, ascending
    depth: Tensor  # (n,) float32 z-depth in the point's frame, metres
    tokens: Tensor  # (n, C) bfloat16
    quality: Tensor  # (n,) uint8, see worker.projection.quality_code
    slant: Tensor  # (n,) uint8, how far the surface recedes, in steps of 1 / SLANT_STEPS cells
    relief: Tensor  # (n, NUM_PARTS) int8 depths of cells' parts, see relief_code; (n, 0): unknown
    removed: Tensor  # (m,) int64 ids, ascending: superseded, carved away or evicted
    struck: Tensor  # (k,) int64 ids, ascending, of points that were contradicted for the first time
    struck_quality: Tensor  # (k,) uint8, what they are worth now
    serials: Tensor  # (T,) int64, ascending: the frames written
    source: Tensor  # (T,) int32 their frame numbers
    intrinsics: Tensor  # (T, 4) float64 at the grid's size
    world_from_camera: Tensor  # (T, 4, 4) float64


@dataclass(frozen=True)
class MemoryStats:
    num_points: int
    num_bytes: int  # of the points held, without spare capacity
    num_sources: int  # distinct frames that still have points
    held_bytes: int = 0  # really allocated, with spare capacity
    num_superseded: int = 0  # points removed so far, since this memory was created or restored:
    num_carved: int = 0  # replaced by better ones; seen through twice;
    num_evicted: int = 0  # gone to keep the budget


class Memory(Protocol):
    def write(
        self,
        tokens: Tensor,  # (T, C, h, w)
        depth: Tensor,  # (T, H', W') z-depth in metres, 0 or not finite = invalid
        cameras: Cameras,  # (T,)
        source: Sequence[int],  # T frame numbers >= 0
        confidence: Tensor | None = None,  # (T, h, w) of the depth, > 0
        mask: Tensor | None = None,  # (T, H", W") bool of any size, True = exclude
        observed: bool = False,  # RGB-D truth: replaces what is worse; else fills what is uncovered
        readout: Readout
        | None = None,  # of the same cameras since the last write: saves what is generated a look
        images: Tensor | None = None,  # (T, H, W, 3) uint8 that the tokens show, to keep pixels of
    ) -> Delta: ...

    def forget(self, source: Sequence[int], cells: Tensor | None = None) -> Delta:
        """Remove the points that these T frames added, or of them those of the cells (T, h, w) bool
        given; frames that added none are no error.
        """
        ...

    def apply(self, delta: Delta) -> None: ...

    def read(self, cameras: Cameras, mode: ReadMode = "soft") -> Readout: ...

    def stats(self) -> MemoryStats: ...

    def state(self) -> dict[str, Tensor]: ...


def empty_readout(
    num_views: int,
    channels: int,
    grid: tuple[int, int],
    device: str,
    mode: ReadMode = "nearest",
) -> Readout:
    shape = (num_views, *grid)
    nobody = torch.full(shape, -1, dtype=torch.int64, device=device)
    zeros = torch.zeros(shape, device=device)
    tokens = torch.zeros(num_views, channels, *grid, device=device)
    pairs = torch.zeros(num_views, 2, *grid, device=device)
    nothing = Readout(tokens, zeros, zeros, nobody, nobody, zeros, pairs, pairs)
    if mode != "fine":
        return nothing
    finer = (grid[0] * FINER, grid[1] * FINER)
    blank = empty_readout(num_views, channels, finer, device)
    blank = replace(blank, part=torch.zeros_like(blank.winner))
    return replace(nothing, finer=replace(blank, second=blank))


def empty_delta(channels: int, device: str = "cpu", num_parts: int = 0) -> Delta:
    def column(dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.zeros(0, *shape, dtype=dtype, device=device)

    ids, code = column(torch.int64), column(torch.uint8)
    return Delta(
        ids=ids,
        depth=column(torch.float32),
        tokens=column(torch.bfloat16, channels),
        quality=code,
        slant=code,
        relief=column(torch.int8, num_parts),
        removed=ids,
        struck=ids,
        struck_quality=code,
        serials=ids,
        source=column(torch.int32),
        intrinsics=column(torch.float64, 4),
        world_from_camera=column(torch.float64, 4, 4),
    )
