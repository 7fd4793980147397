"""What the compiled loops of worker/splat/kernels.py take: columns of a memory, cameras, evidence.

Axis legend: n points, b blocks, f frames, t cameras, h w the latent grid.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from numpy.typing import NDArray

Array = NDArray[Any]
# (n, c) int16 bits of bfloat16, or (n, c) int8 and (n,) float32 scale; the others have no rows
Stored = tuple[Array, Array, Array]


class Rows(NamedTuple):
    """Columns of the points; NaN depth = removed."""

    depth: Array  # (n,) float32
    cell: Array  # (n,) int16 or int32, row * width + column in the point's frame
    slant: Array  # (n,) uint8
    relief: Array  # (n, parts) int8, see relief_code
    quality: Array  # (n,) uint8


class Blocks(NamedTuple):
    """Runs of at most BLOCK rows of one frame, ascending, with the bounds of their centres."""

    start: Array  # (b,) int64
    length: Array  # (b,) int32
    frame: Array  # (b,) int32
    low: Array  # (b, 3) float32 metres from the frame's eye along the world's axes
    high: Array  # (b, 3) float32


class Frames(NamedTuple):
    pose: Array  # (f, 4, 4) float64 world_from_camera
    intrinsics: Array  # (f, 4) float64 at the size of the grid, or of its parts
    source: Array  # (f,) int32
    offset: float  # of a cell's ray: 0.5 = through its centre
    width: int  # of the frames' grid
    parts: int = 1  # that each cell is looked at in: NUM_PARTS, or 1 as a whole


class Views(NamedTuple):
    pose: Array  # (t, 4, 4) float64 world_from_camera
    intrinsics: Array  # (t, 4) float64 at the grid's size
    height: int
    width: int


class Scene(NamedTuple):
    """What new views saw, by cell, and which qualities they may overrule (codes, -1 = none); as
    torch tensors or, for the kernels, as arrays.
    """

    depth: Any  # (t * h * w,) float32
    extent: Any  # float32 metres
    replaces: Any  # bool: the cell is added and takes the place of what was known there
    inside: Any  # bool: so do its neighbours
    clear: Any  # float32: nothing may be nearer than this, 0 = no statement
    may_replace: Any  # int16
    outranks: Any  # int16
    may_strike: Any  # int16


class Rules(NamedTuple):
    coarser: float  # a view strikes only where its cells are at most this much wider than the patch
    same_extent: float  # a patch at most this much longer than the new one is covered by it alone
