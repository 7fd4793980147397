"""Exact z-buffer splat of latent points into any number of cameras, in plain torch (CPU and CUDA).

Every point covers the cells whose centres lie within half its footprint, so that what was seen from
afar stays closed when the camera comes near. Per cell three scatter minima decide: the nearest
depth; among the points on that front surface the source frame that saw it best (then the newest);
among that frame's points the one nearest to the cell's centre (then the lowest index). Minima over
packed integer keys don't depend on order, so the result is the same from run to run and for any
number of threads. No sort, and tokens are touched for winners only.

`soft` mode spreads the chosen frame's points with a tent kernel instead of taking one: sub-cell
accurate, and frames are chosen, never averaged. `splat` returns sparse fragments, `accumulate`
applies them to tokens.

Axis legend: n points, t cameras, h w the latent grid, m fragments.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from worker.geometry import Cameras, Convention

Mode = Literal["nearest", "soft"]

NEAR_M = 0.05
FRONT_RATIO = 1 / 16  # points this much behind the nearest one still belong to the front surface
MAX_FOOTPRINT = 4.0  # cells; beyond it a point is too coarse to close the surface
OVERLAP = 1.125  # footprints are widened by this, so that rotated grids leave no cracks
QUALITY_BITS = 21  # dropped from the float's 31: qualities within a quarter of an octave are equal
CHUNK = 1 << 18  # point-view pairs projected at once, to stay in the cache
NOTHING = torch.iinfo(torch.int64).max
WEIGHT_ONE = float(1 << 20)
TOKEN_ONE = float(1 << 24)


@dataclass(frozen=True)
class Fragments:
    """Sparse matrix from points to cells; the weights of a covered cell sum to 1."""

    cell: Tensor  # (m,) int64 index into t * h * w
    point: Tensor  # (m,) int64
    weight: Tensor  # (m,) float32


@dataclass(frozen=True)
class Splat:
    """What the cameras see of the points."""

    fragments: Fragments
    winner: Tensor  # (t, h, w) int64 point index, -1 where nothing is seen
    depth: Tensor  # (t, h, w) float32 z-depth of the winner, 0 where nothing is seen
    coverage: Tensor  # (t, h, w) float32, 1 where something is seen
    mode: Mode


@dataclass(frozen=True)
class Hits:
    """Pairs of a point and a camera that may see it."""

    view: Tensor  # (m,) int64
    point: Tensor  # (m,) int64
    u: Tensor  # (m,) float32 cells, corner origin
    v: Tensor  # (m,) float32
    z: Tensor  # (m,) float32 metres
    footprint_u: Tensor  # (m,) float32 cells the point's surface spans, 1 .. MAX_FOOTPRINT
    footprint_v: Tensor  # (m,) float32


def splat(
    positions: Tensor,  # (n, 3) float32
    size: Tensor,  # (n,) float32 metres per cell, across the ray that saw the point
    quality: Tensor,  # (n,) float32 >= 0
    source: Tensor,  # (n,) integer >= 0, the frame that saw the point
    cameras: Cameras,  # (t,) at the latent grid's size, in the positions' frame
    mode: Mode = "soft",
    convention: Convention = "centre",
    slant: Tensor | None = None,  # (n, 3) metres the point's surface recedes, along that ray
) -> Splat:
    """Which points the cameras see, and how much each contributes to each cell.

    A point whose position is NaN is seen by nobody. `reference` reproduces the public code's rules
    (rounded pixels, one cell per point, no near plane, nearest depth only) and implies `nearest`.
    """
    grid = (len(cameras), cameras.height, cameras.width)
    num_cells = grid[0] * grid[1] * grid[2]
    hits = project(positions, size, cameras, convention, slant)
    spread = OVERLAP if convention == "centre" else 1.0
    hit, cell = _covered_cells(hits, grid, spread)
    if convention == "reference":
        chosen = _first(hits.z[hit], hits.point[hit], cell, num_cells)
        return _nearest(chosen, hits, hit, cell, grid)
    front = _minimum(hits.z[hit], cell, num_cells) * (1 + FRONT_RATIO)
    front = front.masked_fill(front == torch.inf, 0.0)
    keep = (hits.z[hit] <= front[cell]).nonzero()[:, 0]
    hit, cell = hit[keep], cell[keep]
    point = hits.point[hit]
    rank = _source_rank(quality[point], source[point])
    best = _minimum(rank, cell, num_cells)
    keep = (rank == best[cell]).nonzero()[:, 0]
    hit, cell = hit[keep], cell[keep]
    chosen = _first(_distance(hits, hit, cell, grid), hits.point[hit], cell, num_cells)
    result = _nearest(chosen, hits, hit, cell, grid)
    if mode == "nearest":
        return result
    soft = _soft_fragments(hits, hit.unique(), front, best & 0x7FFFFFFF, source, grid)
    return Splat(soft, result.winner, result.depth, result.coverage, mode)


def accumulate(result: Splat, tokens: Tensor, deterministic: bool = True) -> Tensor:
    """(t, c, h, w) float32: the weighted tokens (n, c) of every cell, 0 where nothing is seen.

    Deterministic sums of soft fragments are fixed-point (2^-24), so they don't depend on order,
    threads or device, and have no gradient; otherwise the result is differentiable with respect to
    `tokens`.
    """
    t, h, w = result.winner.shape
    fragments = result.fragments
    values = tokens[fragments.point].float() * fragments.weight[:, None]
    if deterministic and result.mode == "soft":
        sums = torch.zeros(t * h * w, tokens.shape[1], dtype=torch.int64, device=tokens.device)
        sums.index_add_(0, fragments.cell, (values * TOKEN_ONE).round().long())
        cells = (sums.double() / TOKEN_ONE).float()
    else:
        cells = torch.zeros(t * h * w, tokens.shape[1], device=tokens.device)
        cells = cells.index_add(0, fragments.cell, values)
    return cells.reshape(t, h, w, -1).permute(0, 3, 1, 2)


def project(
    positions: Tensor,
    size: Tensor,
    cameras: Cameras,
    convention: Convention = "centre",
    slant: Tensor | None = None,
) -> Hits:
    """All pairs of a point and a camera that it may touch, ordered by view, then point."""
    step = max(1, CHUNK // max(1, len(positions)))
    parts = [
        _project_views(positions, size, slant, cameras[start : start + step], convention)
        for start in range(0, max(1, len(cameras)), step)
    ]
    for i, part in enumerate(parts):
        part[0].add_(i * step)
    return Hits(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def _project_views(
    positions: Tensor,
    size: Tensor,
    slant: Tensor | None,
    cameras: Cameras,
    convention: Convention,
) -> tuple[Tensor, ...]:
    matrix = cameras.camera_from_world.float()[:, :3]
    focal, centre = cameras.intrinsics.float().split(2, dim=-1)
    x, y, z = _rotated(positions.unbind(1), matrix[..., None])
    x, y, z = (value + matrix[:, i, 3:] for i, value in enumerate((x, y, z)))
    u = x * focal[:, :1] / z + centre[:, :1]
    v = y * focal[:, 1:] / z + centre[:, 1:]
    near, margin = (NEAR_M, 0.5 * MAX_FOOTPRINT * OVERLAP)
    if convention == "reference":
        u, v, near, margin = u.round(), v.round(), 0.0, 0.0
    seen = (z > near) & (u >= -margin) & (v >= -margin)
    seen &= (u < cameras.width + margin) & (v < cameras.height + margin)
    view, point = seen.nonzero(as_tuple=True)
    x, y, z, u, v = (value[seen] for value in (x, y, z, u, v))
    scale = size[point] / z
    if convention == "reference":
        scale = torch.zeros_like(z)
    footprint = [scale * focal[view, i] for i in (0, 1)]
    if slant is not None:
        a, b, c = _rotated(slant[point].float().unbind(1), matrix[view].movedim(0, -1))
        footprint[0] += ((a - c * x / z) / z * focal[view, 0]).abs()
        footprint[1] += ((b - c * y / z) / z * focal[view, 1]).abs()
    return view, point, u, v, z, *(value.clamp(1.0, MAX_FOOTPRINT) for value in footprint)


def _rotated(vector: tuple[Tensor, ...], matrix: Tensor) -> tuple[Tensor, ...]:
    """Elementwise, as a matrix product may round differently with another shape or device."""
    x, y, z = vector
    if matrix.ndim == 4:  # (t, 3, 4, 1) against (n,)
        matrix = matrix.permute(1, 2, 0, 3)
    return tuple(x * matrix[i, 0] + y * matrix[i, 1] + z * matrix[i, 2] for i in range(3))


def _first_cell(u: Tensor, width: Tensor) -> Tensor:
    """The first cell with its centre in (u - width / 2, u + width / 2]; floor(u) if width is 1."""
    return (u + (0.5 - 0.5 * width)).floor()


def _last_cell(u: Tensor, width: Tensor) -> Tensor:
    return (u - (0.5 - 0.5 * width)).floor()


def _covered_cells(hits: Hits, grid: tuple[int, int, int], spread: float) -> tuple[Tensor, Tensor]:
    """All (hit, cell) pairs where the cell's centre lies in the hit's footprint times spread."""
    _, h, w = grid
    width_u, width_v = hits.footprint_u * spread, hits.footprint_v * spread
    left = _first_cell(hits.u, width_u).long().clamp(min=0)
    top = _first_cell(hits.v, width_v).long().clamp(min=0)
    columns = (_last_cell(hits.u, width_u).long().clamp(max=w - 1) - left + 1).clamp(min=0)
    rows = (_last_cell(hits.v, width_v).long().clamp(max=h - 1) - top + 1).clamp(min=0)
    start = (hits.view * h + top) * w + left
    count = columns * rows
    hit = torch.repeat_interleave(count)
    offset = torch.arange(len(hit), device=hit.device) - (count.cumsum(0) - count)[hit]
    row = offset // columns[hit]
    return hit, start[hit] + row * w + offset - row * columns[hit]


def _minimum(value: Tensor, cell: Tensor, num_cells: int) -> Tensor:
    """(num_cells,) the smallest value in each cell."""
    worst = torch.inf if value.is_floating_point() else NOTHING
    empty = torch.full((num_cells,), worst, dtype=value.dtype, device=value.device)
    return empty.scatter_reduce(0, cell, value, "amin")


def _bits(value: Tensor) -> Tensor:
    """int64 that orders non-negative float32 as they are ordered."""
    return value.contiguous().view(torch.int32).long()


def _first(value: Tensor, point: Tensor, cell: Tensor, num_cells: int) -> Tensor:
    """(num_cells,) the point with the smallest value >= 0, then the lowest index; -1 for none."""
    key = _minimum(_bits(value) << 32 | point, cell, num_cells)
    return torch.where(key == NOTHING, -1, key & 0xFFFFFFFF)


def _source_rank(quality: Tensor, source: Tensor) -> Tensor:
    """int64, smaller is better: quality in steps of a quarter octave, then the newest frame."""
    worse = (0x7F7FFFFF - _bits(quality)) >> QUALITY_BITS
    return worse << 32 | (0x7FFFFFFF - source.long())


def _distance(hits: Hits, hit: Tensor, cell: Tensor, grid: tuple[int, int, int]) -> Tensor:
    _, h, w = grid
    du = hits.u[hit] - (cell % w + 0.5)
    dv = hits.v[hit] - (cell // w % h + 0.5)
    return du * du + dv * dv


def _nearest(
    chosen: Tensor, hits: Hits, hit: Tensor, cell: Tensor, grid: tuple[int, int, int]
) -> Splat:
    won = (chosen[cell] == hits.point[hit]).nonzero()[:, 0]
    depth = torch.zeros(len(chosen), device=chosen.device)
    depth[cell[won]] = hits.z[hit[won]]
    covered = (chosen >= 0).nonzero()[:, 0]
    fragments = Fragments(covered, chosen[covered], torch.ones_like(depth[covered]))
    winner = chosen.reshape(grid)
    return Splat(fragments, winner, depth.reshape(grid), (winner >= 0).float(), "nearest")


def _soft_fragments(
    hits: Hits,
    visible: Tensor,
    front: Tensor,
    best: Tensor,
    source: Tensor,
    grid: tuple[int, int, int],
) -> Fragments:
    """Tent weights of the chosen frame's visible points; sums in fixed point, so in any order."""
    some = Hits(*(getattr(hits, field.name)[visible] for field in fields(Hits)))
    hit, cell = _covered_cells(some, grid, 2.0)
    same = 0x7FFFFFFF - source[some.point[hit]].long() == best[cell]
    keep = (same & (some.z[hit] <= front[cell])).nonzero()[:, 0]
    hit, cell = hit[keep], cell[keep]
    _, h, w = grid
    du = (some.u[hit] - (cell % w + 0.5)).abs() / some.footprint_u[hit]
    dv = (some.v[hit] - (cell // w % h + 0.5)).abs() / some.footprint_v[hit]
    tent = ((1 - du).clamp(min=0) * (1 - dv).clamp(min=0) * WEIGHT_ONE).round().long()
    total = torch.zeros(len(front), dtype=torch.int64, device=tent.device)
    total.index_add_(0, cell, tent)
    weight = (tent.double() / total[cell].clamp(min=1)).float()
    return Fragments(cell, some.point[hit], weight)
