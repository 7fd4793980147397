"""Exact z-buffer splat of latent points into any number of cameras, in plain torch (CPU and CUDA).

Every point covers the cells whose centres lie on its patch of surface, so that what was seen from
afar stays closed when the camera comes near. Cells that no patch reaches are filled by the rims of
patches beside them, which close the cracks of a turned grid but never hide what lies behind.

Per cell three scatter minima decide: the nearest depth; among the points on that front surface the
source frame that tells it best from where the camera stands (then the newest); among that frame's
points the one nearest to the cell's centre (then the lowest index). Minima over packed integer keys
don't depend on order, so the result is the same from run to run and for any number of threads. No
sort, and tokens are touched for winners only.

`soft` mode spreads the chosen frame's points with a tent kernel instead of taking one: sub-cell
accurate, and frames are chosen, never averaged. `layers` is `nearest` together with a second
surface: the next one behind, found by the same rules among the points beyond the front one. Of
`witnesses` the second one is what another frame tells: the same rules among these points and those
of the front surface that are not of the chosen frame. `splat` returns sparse fragments,
`accumulate` applies them to tokens. Parts of points (`FramePatches.in_parts`) are patches like any
other.

Axis legend: n points, t cameras, h w the latent grid, m fragments.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from worker.geometry import Cameras, Convention
from worker.projection import (
    FILL,
    NEAR_M,
    Hits,
    Patches,
    covered_cells,
    offsets,
    project_chunks,
    widths,
)

Mode = Literal["nearest", "soft", "layers", "witnesses"]
TWO: tuple[Mode, ...] = ("layers", "witnesses")  # modes that show a second surface

FRONT_RATIO = 1 / 8  # points this much behind the nearest one still belong to the front surface
TIGHT = 1.03125  # patches are widened by this, so that rounding leaves no cracks between them
RIM_COVERAGE = 0.5  # of a cell that only a rim (patches widened by FILL) reaches
LAST = 2.0**40  # factor on a rim's depth: exact, and behind everything else
NOTHING = torch.iinfo(torch.int64).max
NO_SOURCE = 0x7FFFFFFF
MIN_TENT = 1 / 64  # smaller weights are rounding, and would spoil a view's own readout
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
    coverage: Tensor  # (t, h, w) float32, 1 on a surface, RIM_COVERAGE on its widened rim, else 0
    offset: (
        Tensor  # (t, 2, h, w) float32 cells in u, v from the cell's centre to the winner's, or 0
    )
    span: Tensor  # (t, 2, h, w) float32 cells in u, v that the winner's patch spans, or 0
    aside: Tensor  # (t, h, w) int64 quality codes that the winner loses there, or 0
    mode: Mode
    second: Splat | None = None  # of `layers` and `witnesses`


@dataclass(frozen=True)
class Beside:
    """What a second surface is no part of: the first one's depths, unless another frame tells them
    than the one named; nor has it rims.
    """

    limit: Tensor  # (t * h * w,) float32, see _front_surface
    taken: Tensor  # (t * h * w,) int64 that frame, -1: no frame is let off


def splat(
    patches: Patches,  # n
    quality: Tensor,  # (n,) uint8, see quality_code
    source: Tensor,  # (n,) integer >= 0, the frame that saw the point
    cameras: Cameras,  # (t,) at the latent grid's size, in the positions' frame
    mode: Mode = "soft",
    convention: Convention = "centre",
    beside: Beside | None = None,
) -> Splat:
    """Which points the cameras see, and how much each contributes to each cell.

    `beside` leaves to choose from what a second surface may show.

    `reference` reproduces the public code's rules (rounded pixels, one cell per point, no near
    plane, nearest depth only) and implies `nearest`.
    """
    grid = (len(cameras), cameras.height, cameras.width)
    ratio = FRONT_RATIO if convention == "centre" else 0.0
    parts = project_chunks(patches, cameras, convention)
    hits, cell, limit = _front_surface(parts, grid, ratio, source, beside)
    rim = limit >= LAST * NEAR_M
    front = torch.where(rim, limit / LAST, limit)
    if convention == "reference":
        return _nearest(_first(hits.z, hits.point, cell, len(front)), hits, cell, rim, grid)
    rank = _source_rank(quality[hits.point].long() - hits.aside, source[hits.point])
    best = _minimum(rank, cell, len(front))
    keep = (rank == best[cell]).nonzero()[:, 0]
    hits, cell = hits[keep], cell[keep]
    chosen = _first(_distance(hits, cell, grid), hits.point, cell, len(front))
    result = _nearest(chosen, hits, cell, rim, grid)
    if mode in TWO:
        told = (NO_SOURCE - (best & NO_SOURCE)).masked_fill(best == NOTHING, -1)
        beside = Beside(limit, told if mode == "witnesses" else torch.full_like(told, -1))
        second = splat(patches, quality, source, cameras, "nearest", beside=beside)
        result = replace(result, second=second, mode=mode)
    if mode != "soft":
        return result
    soft = _soft_fragments(hits, front, best & NO_SOURCE, source, grid)
    return replace(result, fragments=soft, mode=mode)


def accumulate(
    result: Splat, tokens: Tensor, deterministic: bool = True, scale: Tensor | None = None
) -> Tensor:
    """(t, c, h, w) float32: the weighted tokens (n, c), times scale (n,), of every cell; 0 where
    nothing is seen.

    Deterministic sums of soft fragments are fixed-point (2^-24), so they don't depend on order,
    threads or device, and have no gradient; otherwise the result is differentiable with respect to
    `tokens`.
    """
    t, h, w = result.winner.shape
    fragments = result.fragments
    values = tokens[fragments.point].float()
    if scale is not None:
        values = values * scale[fragments.point, None]
    values = values * fragments.weight[:, None]
    if deterministic and result.mode == "soft":
        sums = torch.zeros(t * h * w, tokens.shape[1], dtype=torch.int64, device=tokens.device)
        sums.index_add_(0, fragments.cell, (values * TOKEN_ONE).round().long())
        cells = (sums.double() / TOKEN_ONE).float()
    else:
        cells = torch.zeros(t * h * w, tokens.shape[1], device=tokens.device)
        cells = cells.index_add(0, fragments.cell, values)
    return cells.reshape(t, h, w, -1).permute(0, 3, 1, 2)


def _front_surface(
    parts: Iterable[Hits],
    grid: tuple[int, int, int],
    ratio: float,
    source: Tensor,
    beside: Beside | None,
) -> tuple[Hits, Tensor, Tensor]:
    """Hits on the nearest surface of their cell, one per cell covered, the cells, and the limits.

    The limit of a cell, (t * h * w,) float32, is the depth up to which points belong to its front
    surface, 0 where nothing is, times LAST where only the rims of surfaces reach. What is hidden by
    an earlier part is dropped at once.
    """
    front, kept = None, []
    for hits in parts:
        if front is None:
            front = hits.z.new_full((grid[0] * grid[1] * grid[2],), torch.inf)
        hit, cell, num_small = covered_cells(hits, *widths(hits, FILL), grid)
        z = hits.z.index_select(0, hit)
        tight = _is_tight(hits[hit[num_small:]], cell[num_small:], grid)
        z[num_small:] *= torch.where(tight, 1.0, LAST)
        if beside is not None:
            taken = beside.taken[cell]
            other = (taken >= 0) & (taken != source[hits.point[hit]])
            second = other | (z > beside.limit[cell])
            keep = (second & (z < LAST * NEAR_M)).nonzero()[:, 0]
            hit, cell, z = hit[keep], cell[keep], z[keep]
        front.scatter_reduce_(0, cell, z, "amin")
        keep = (z <= front.index_select(0, cell) * (1 + ratio)).nonzero()[:, 0]
        kept.append((hits[hit[keep]], cell[keep], z[keep]))
    assert front is not None
    limit = front.masked_fill(front == torch.inf, 0.0) * (1 + ratio)
    if len(kept) == 1:
        return *kept[0][:2], limit
    hits = Hits(*map(torch.cat, zip(*(vars(part[0]).values() for part in kept), strict=True)))
    cell, z = (torch.cat(column) for column in list(zip(*kept, strict=True))[1:])
    keep = (z <= limit[cell]).nonzero()[:, 0]
    return hits[keep], cell[keep], limit


def _is_tight(hits: Hits, cell: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """(m,) bool: the cell's centre lies within the surface itself, not in its widened rim."""
    width_u, width_v = widths(hits, TIGHT)
    du, dv = offsets(hits, cell, grid)
    inside = (du >= -0.5 * width_u) & (du < 0.5 * width_u)
    return inside & (dv >= -0.5 * width_v) & (dv < 0.5 * width_v)


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
    """int64, smaller is better: the best quality, then the newest frame."""
    return (255 - quality.clamp(min=0)) << 32 | (NO_SOURCE - source.long())


def _distance(hits: Hits, cell: Tensor, grid: tuple[int, int, int]) -> Tensor:
    du, dv = offsets(hits, cell, grid)
    return du * du + dv * dv


def _nearest(
    chosen: Tensor, hits: Hits, cell: Tensor, rim: Tensor, grid: tuple[int, int, int]
) -> Splat:
    won = (chosen[cell] == hits.point).nonzero()[:, 0]
    cell, hits = cell[won], hits[won]
    place = torch.zeros(6, len(chosen), device=chosen.device)
    seat = (hits.z, *offsets(hits, cell, grid), hits.span_u, hits.span_v, hits.aside.float())
    place[:, cell] = torch.stack(seat)
    covered = (chosen >= 0).nonzero()[:, 0]
    fragments = Fragments(covered, chosen[covered], torch.ones_like(place[0, covered]))
    coverage = (chosen >= 0).float() * torch.where(rim, RIM_COVERAGE, 1.0)
    depth, *pairs, aside = place.reshape(6, *grid)
    offset, span = torch.stack(pairs[:2], dim=1), torch.stack(pairs[2:], dim=1)
    coverage, winner = coverage.reshape(grid), chosen.reshape(grid)
    return Splat(fragments, winner, depth, coverage, offset, span, aside.long(), "nearest")


def _soft_fragments(
    visible: Hits,  # on the front surface and of the chosen frame, once per cell covered
    front: Tensor,
    frame: Tensor,  # (t * h * w,) NO_SOURCE - the frame chosen in each cell
    source: Tensor,
    grid: tuple[int, int, int],
) -> Fragments:
    """Tent weights of the chosen frame's visible points; sums in fixed point, so in any order."""
    pair = visible.view * len(source) + visible.point
    fresh = torch.ones_like(pair, dtype=torch.bool)
    fresh[1:] = pair[1:] != pair[:-1]
    hits = visible[fresh.nonzero()[:, 0]]
    radius_u, radius_v = widths(hits, 1.0)
    hit, cell, _ = covered_cells(hits, 2 * radius_u, 2 * radius_v, grid)
    same = NO_SOURCE - source[hits.point[hit]].long() == frame[cell]
    keep = (same & (hits.z[hit] <= front[cell])).nonzero()[:, 0]
    hit, cell = hit[keep], cell[keep]
    hits = hits[hit]
    tent = torch.ones_like(hits.z)
    for offset, radius in zip(offsets(hits, cell, grid), widths(hits, 1.0), strict=True):
        tent = tent * (1 - offset.abs() / radius).clamp(min=0)
    keep = (tent >= MIN_TENT).nonzero()[:, 0]
    tent, cell, point = (tent[keep] * WEIGHT_ONE).round().long(), cell[keep], hits.point[keep]
    total = torch.zeros(len(front), dtype=torch.int64, device=tent.device)
    total.index_add_(0, cell, tent)
    weight = (tent.double() / total[cell].clamp(min=1)).float()
    return Fragments(cell, point, weight)
