"""Points meet cameras: which cells each point may cover, in plain torch.

A point stands for a patch of surface: `size` wide across the ray that saw it, receding by `slant`
along that ray. From another camera the patch spans more or fewer cells, in u and in v. Products are
elementwise in float32, so that they round alike whatever the batch; poses are inverted in float64.

Axis legend: n points, t cameras, h w the latent grid, m hits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.geometry import Cameras, Convention

NEAR_M = 0.05
MAX_SPAN = 4.0  # cells; beyond it a point is too coarse to close the surface
FILL = 1.25  # spans are widened by this to fill cells that nothing else covers
CHUNK = 1 << 17  # point-view pairs projected at once, to stay in the cache


@dataclass(frozen=True)
class Hits:
    """Pairs of a point and a camera that may see it; columns of equal length m."""

    view: Tensor  # int64
    point: Tensor  # int64
    u: Tensor  # float32 cells, corner origin
    v: Tensor  # float32
    z: Tensor  # float32 metres
    span_u: Tensor  # float32 cells that the point's surface spans, at most MAX_SPAN
    span_v: Tensor  # float32

    def __getitem__(self, rows: Tensor) -> Hits:
        return Hits(*(column.index_select(0, rows) for column in vars(self).values()))


def project(
    positions: Tensor,
    size: Tensor,
    cameras: Cameras,
    convention: Convention = "centre",
    slant: Tensor | None = None,
) -> Hits:
    """All pairs of a point and a camera that it may touch."""
    parts = project_chunks(positions, size, cameras, convention, slant)
    columns = zip(*(vars(part).values() for part in parts), strict=True)
    return Hits(*(torch.cat(column) for column in columns))


def project_chunks(
    positions: Tensor,
    size: Tensor,
    cameras: Cameras,
    convention: Convention,
    slant: Tensor | None,
) -> Iterator[Hits]:
    """Hits of at most CHUNK pairs at a time; a chunk of points meets all views while it is hot."""
    rows = min(max(1, len(positions)), CHUNK)
    views = max(1, CHUNK // rows)
    for start in range(0, max(1, len(positions)), rows):
        chunk = slice(start, start + rows)
        recede = None if slant is None else slant[chunk]
        for first in range(0, max(1, len(cameras)), views):
            some = cameras[first : first + views]
            hits = _project(positions[chunk], size[chunk], recede, some, convention)
            hits.view.add_(first)
            hits.point.add_(start)
            yield hits


def _project(
    positions: Tensor,
    size: Tensor,
    slant: Tensor | None,
    cameras: Cameras,
    convention: Convention,
) -> Hits:
    matrix = cameras.camera_from_world.float()[:, :3, :, None]
    fx, fy, cx, cy = cameras.intrinsics.float()[..., None].unbind(1)
    x, y, z = _rotated(positions, matrix.movedim(0, 2))
    x, y, z = (value + matrix[:, i, 3] for i, value in enumerate((x, y, z)))
    u, v = x * fx / z + cx, y * fy / z + cy
    near, margin = NEAR_M, 0.5 * (FILL * MAX_SPAN - 1)
    if convention == "reference":
        u, v, near, margin = u.round(), v.round(), 0.0, 0.0
    seen = (z > near) & (u >= -margin) & (u < cameras.width + margin)
    seen &= (v >= -margin) & (v < cameras.height + margin)
    pair = seen.flatten().nonzero()[:, 0]
    x, y, z, u, v = (value.flatten().index_select(0, pair) for value in (x, y, z, u, v))
    view, point = pair // len(positions), pair % len(positions)
    if convention == "reference":
        return Hits(view, point, u, v, z, torch.zeros_like(z), torch.zeros_like(z))
    focal_u, focal_v = (value[:, 0].index_select(0, view) / z for value in (fx, fy))
    width = size.index_select(0, point)
    span_u, span_v = width * focal_u, width * focal_v
    if slant is not None:  # the patch recedes by (a, b, c) in the camera's frame
        rows = matrix[0] if len(matrix) == 1 else matrix[view, :, :, 0].movedim(0, -1)
        a, b, c = _rotated(slant.index_select(0, point).float(), rows)
        span_u += ((a - c * x / z) * focal_u).abs()
        span_v += ((b - c * y / z) * focal_v).abs()
    return Hits(view, point, u, v, z, span_u.clamp(max=MAX_SPAN), span_v.clamp(max=MAX_SPAN))


def _rotated(vector: Tensor, matrix: Tensor) -> tuple[Tensor, ...]:
    """(n, 3) by (3, 3 or 4, ...); elementwise, as a matrix product may round by shape or device."""
    x, y, z = (column.contiguous() for column in vector.unbind(-1))
    return tuple(x * row[0] + y * row[1] + z * row[2] for row in matrix[:3])


def widths(hits: Hits, factor: float) -> tuple[Tensor, Tensor]:
    """The boxes, in cells, that hits cover: at least the cell they fall into."""
    return (hits.span_u * factor).clamp(min=1), (hits.span_v * factor).clamp(min=1)


def offsets(hits: Hits, cell: Tensor, grid: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Where the hits lie from the cells' centres, in cells."""
    _, h, w = grid
    return hits.u - (cell % w + 0.5), hits.v - (cell // w % h + 0.5)


def _first_cell(u: Tensor, width: Tensor) -> Tensor:
    """The first cell with its centre in (u - width / 2, u + width / 2]; floor(u) if width is 1."""
    return (u + (0.5 - 0.5 * width)).floor()


def _last_cell(u: Tensor, width: Tensor) -> Tensor:
    return (u - (0.5 - 0.5 * width)).floor()


def covered_cells(
    hits: Hits, width_u: Tensor, width_v: Tensor, grid: tuple[int, int, int]
) -> tuple[Tensor, Tensor, int]:
    """All (hit, cell) pairs where the cell's centre lies in a box of this width around the hit.

    The cells of one hit follow one another. First come the hits whose box is one cell; their number
    is the third result.
    """
    _, h, w = grid
    left = _first_cell(hits.u, width_u).clamp(min=0).long()
    top = _first_cell(hits.v, width_v).clamp(min=0).long()
    columns = (_last_cell(hits.u, width_u).clamp(max=w - 1).long() - left + 1).clamp(min=0)
    rows = (_last_cell(hits.v, width_v).clamp(max=h - 1).long() - top + 1).clamp(min=0)
    start = (hits.view * h + top) * w + left
    count = columns * rows
    small = (width_u == 1) & (width_v == 1)
    one, many = (small & (count > 0)).nonzero()[:, 0], (~small & (count > 0)).nonzero()[:, 0]
    count, columns = count[many], columns[many]
    which = torch.repeat_interleave(count)
    offset = torch.arange(len(which), device=which.device) - (count.cumsum(0) - count)[which]
    row = offset // columns[which]
    hit = many[which]
    cell = start[hit] + row * w + offset - row * columns[which]
    return torch.cat([one, hit]), torch.cat([start[one], cell]), len(one)


def placement(
    positions: Tensor,  # (t, h, w, 3) float32 of each cell's point
    size: Tensor,  # (t, h, w)
    slant: Tensor,  # (t, h, w, 3)
    cameras: Cameras,  # (t,) at the latent grid's size, in the positions' frame
) -> tuple[Tensor, Tensor]:
    """Where each cell's point lies from the cell's centre, and how many cells its patch spans, in u
    and v: both (t, 2, h, w) float32.

    A token says what its patch looks like around its own centre; this says where that centre is.
    """
    matrix = cameras.camera_from_world.float()[:, :3, :, None, None].movedim(0, 2)
    fx, fy, cx, cy = cameras.intrinsics.float()[..., None, None].unbind(1)
    x, y, z = (
        value + row[3] for value, row in zip(_rotated(positions, matrix), matrix, strict=True)
    )
    z = z.clamp(min=NEAR_M)
    a, b, c = _rotated(slant.float(), matrix)
    width_u, width_v = size * fx / z, size * fy / z
    span_u = width_u + ((a - c * x / z) * fx / z).abs()
    span_v = width_v + ((b - c * y / z) * fy / z).abs()
    h, w = positions.shape[1:3]
    u = x * fx / z + cx - (torch.arange(w, device=x.device) + 0.5)
    v = y * fy / z + cy - (torch.arange(h, device=x.device)[:, None] + 0.5)
    return torch.stack([u, v], 1), torch.stack([span_u, span_v], 1).clamp(max=MAX_SPAN)
