"""Points meet cameras: which cells each point may cover, in plain torch.

A point stands for a patch of surface: `size` wide across the ray that saw it, receding by `slant`
along that ray. From another camera the patch spans more or fewer cells, in u and in v. Products are
elementwise in float32, each rounded once, so that every device and batch agrees bit for bit; poses
meet in float64.

What a point shows is the less true the farther aside of its own eye one stands: errors of its depth
shift it by that, and surfaces shine. So it is worth less there, by the baseline over the depth.

Axis legend: n points, f frames, t cameras, h w the latent grid, m hits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from worker.geometry import Cameras, Convention
from worker.placed import FINER, NUM_PARTS

NEAR_M = 0.05
MAX_SPAN = 4.0  # cells; beyond it a point is too coarse to close the surface
FILL = 1.25  # spans are widened by this to fill cells that nothing else covers
BLOCK = 512  # rows of one frame that share bounds and are looked at together
SLANT_STEPS = 64  # per cell: the resolution of a stored recession
QUALITY_BITS = 21  # dropped from the float's 31: qualities within a quarter of an octave are equal
QUALITY_ZERO = 95 << 2  # code 0 is 2^-32
ASIDE = 256.0  # quality codes that a point loses by the baseline to its frame's eye over its depth
MOST_ASIDE = 32  # codes; what was observed outranks what was imagined by 40, other things equal
RELIEF_STEPS = 2048.0  # squared steps of a stored relief that double the depth
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
    aside: Tensor  # int64 quality codes that it loses by being seen from elsewhere

    def __getitem__(self, rows: Tensor) -> Hits:
        return Hits(*(column.index_select(0, rows) for column in vars(self).values()))


@dataclass(frozen=True)
class Local:
    """Points in camera frames, metres."""

    x: Tensor  # (t, n) float32
    y: Tensor
    z: Tensor
    size: Tensor  # (n,) float32 metres per cell, across the ray that saw the point
    recession: tuple[Tensor, Tensor, Tensor] | None  # (t, n) each: the patch recedes by so much
    baseline: Tensor | None = None  # (t, n) float32 metres to the eye that saw it


class Patches(Protocol):
    """Patches of surface that cameras can look at."""

    def __len__(self) -> int: ...

    def seen_by(self, cameras: Cameras, rows: slice) -> Local: ...


@dataclass(frozen=True)
class FreePatches:
    """Patches anywhere in the world; a NaN position is seen by nobody."""

    positions: Tensor  # (n, 3) float32
    size: Tensor  # (n,) float32 metres per cell, across the ray that saw the point
    slant: Tensor | None = None  # (n, 3) metres the surface recedes, along that ray
    eye: Tensor | None = None  # (n, 3) float32 where it was seen from

    def __len__(self) -> int:
        return len(self.positions)

    def seen_by(self, cameras: Cameras, rows: slice) -> Local:
        matrix = cameras.camera_from_world.float()[:, :3, :, None].movedim(0, 2)
        x, y, z = (
            value + matrix[i, 3] for i, value in enumerate(_rotated(self.positions[rows], matrix))
        )
        baseline, recession = None, None
        if self.eye is not None:
            apart = _rotated(self.eye[rows], matrix)
            baseline = _length(*(value + matrix[i, 3] for i, value in enumerate(apart)))
        if self.slant is not None:
            a, b, c = _rotated(self.slant[rows].float(), matrix)
            recession = (a, b, c)
        return Local(x, y, z, self.size[rows], recession, baseline)


@dataclass(frozen=True)
class FramePatches:
    """Cells of remembered frames; a NaN depth is seen by nobody.

    A cell's ray and size follow from its frame's camera, so that a point is a cell and a depth, and
    poses meet as float64 differences: a world far from the origin is as sharp as one at 0.
    """

    cell: Tensor  # (n,) integer, row * width + column in the point's frame
    depth: Tensor  # (n,) float32 z-depth in that frame
    slant: Tensor  # (n,) uint8, the recession in steps of 1 / SLANT_STEPS cells
    frame: Tensor  # (n,) int64 index into `frames`
    frames: Cameras  # (f,) at the grid's size
    offset: float = 0.5  # of a cell's ray: its centre; 0 = its corner

    def __len__(self) -> int:
        return len(self.cell)

    def seen_by(self, cameras: Cameras, rows: slice) -> Local:
        frame, depth = self.frame[rows], self.depth[rows]
        m = relations(self.frames, cameras, self.offset)[:, frame].permute(2, 3, 0, 1)
        column, row = self.cell[rows] % self.frames.width, self.cell[rows] // self.frames.width
        column, row = column.float(), row.float()
        ray = [(column * one[0] + row * one[1]) + one[2] for one in m]
        x, y, z = (depth * d + one[3] for d, one in zip(ray, m, strict=True))
        size = depth * pitches(self.frames)[frame]
        recedes = (self.slant[rows].float() * (1 / SLANT_STEPS)) * size
        a, b, c = (recedes * d for d in ray)
        return Local(x, y, z, size, (a, b, c), _length(*(one[3] for one in m)))

    def in_parts(self, relief: Tensor) -> FramePatches:
        """The parts (n * NUM_PARTS) of these cells, given their stored depths (n, NUM_PARTS)."""
        part, width = torch.arange(NUM_PARTS, device=relief.device), self.frames.width
        row, column = (self.cell.long() // width)[:, None], (self.cell.long() % width)[:, None]
        row, column = FINER * row + part // FINER, FINER * column + part % FINER
        depth = self.depth[:, None] * relief_of(relief)
        slant, frame = (one.repeat_interleave(NUM_PARTS) for one in (self.slant, self.frame))
        finer = self.frames.resized(FINER * self.frames.height, FINER * width)
        cell = (row * finer.width + column).flatten()
        return FramePatches(cell, depth.flatten(), slant, frame, finer, self.offset)

    def positions(self) -> Tensor:
        """(n, 3) float64 metres in the world."""
        column, row = self.cell % self.frames.width, self.cell // self.frames.width
        fx, fy, cx, cy = self.frames.intrinsics[self.frame].unbind(-1)
        x, y = (column + self.offset - cx) / fx, (row + self.offset - cy) / fy
        ray = torch.stack([x, y, torch.ones_like(x)], dim=-1)
        pose = self.frames.world_from_camera[self.frame]
        return pose[:, :3, 3] + (pose[:, :3, :3] * (ray * self.depth[:, None])[:, None]).sum(-1)


def pitches(frames: Cameras) -> Tensor:
    """(f,) float32 metres per cell and metre of depth."""
    fx, fy = frames.intrinsics[:, 0], frames.intrinsics[:, 1]
    return (1.0 / (0.5 * (fx + fy))).float()


def relations(frames: Cameras, views: Cameras, offset: float) -> Tensor:
    """(t, f, 3, 4) float32 M and b: (column, row, 1) of a frame's cell times M, times its depth,
    plus b, lies in the view's frame. Elementwise in float64, as every device then agrees.
    """
    source, target = frames.world_from_camera[None], views.world_from_camera[:, None]
    fx, fy, cx, cy = frames.intrinsics.unbind(-1)
    rows = []
    for i in range(3):
        t0, t1, t2 = (target[..., k, i] for k in range(3))
        q0, q1, q2 = (
            (t0 * source[..., 0, j] + t1 * source[..., 1, j]) + t2 * source[..., 2, j]
            for j in range(3)
        )
        b0, b1, b2 = (source[..., k, 3] - target[..., k, 3] for k in range(3))
        d0, d1 = q0 / fx, q1 / fy
        d2 = (q2 + (offset - cx) * d0) + (offset - cy) * d1
        rows.append(torch.stack([d0, d1, d2, (t0 * b0 + t1 * b1) + t2 * b2], dim=-1))
    return torch.stack(rows, dim=-2).float()


def quality_code(quality: Tensor) -> Tensor:
    """uint8 in quarter octaves from 2^-32; what is told apart no finer need not be stored finer."""
    bits = quality.float().contiguous().view(torch.int32) >> QUALITY_BITS
    return (bits - QUALITY_ZERO).clamp(0, 255).to(torch.uint8)


def quality_of(code: Tensor) -> Tensor:
    """float32, the least quality of this code."""
    return ((code.int() + QUALITY_ZERO) << QUALITY_BITS).view(torch.float32)


def relief_code(ratio: Tensor) -> Tensor:
    """int8 of a part's depth over its point's, finer the closer to 1; up to 8.9 times, or down."""
    apart = torch.maximum(ratio, 1 / ratio) - 1
    steps = (apart * RELIEF_STEPS).sqrt().round().clamp(max=127)
    return torch.where(ratio < 1, -steps, steps).to(torch.int8)


def relief_of(code: Tensor) -> Tensor:
    """float32, the ratio of this code."""
    factor = 1 + code.float().square() / RELIEF_STEPS
    return torch.where(code < 0, 1 / factor, factor)


def project(patches: Patches, cameras: Cameras, convention: Convention = "centre") -> Hits:
    """All pairs of a point and a camera that it may touch."""
    parts = project_chunks(patches, cameras, convention)
    columns = zip(*(vars(part).values() for part in parts), strict=True)
    return Hits(*(torch.cat(column) for column in columns))


def project_chunks(patches: Patches, cameras: Cameras, convention: Convention) -> Iterator[Hits]:
    """Hits of at most CHUNK pairs at a time; a chunk of points meets all views while it is hot."""
    rows = min(max(1, len(patches)), CHUNK)
    views = max(1, CHUNK // rows)
    for start in range(0, max(1, len(patches)), rows):
        for first in range(0, max(1, len(cameras)), views):
            some = cameras[first : first + views]
            hits = _project(patches.seen_by(some, slice(start, start + rows)), some, convention)
            hits.view.add_(first)
            hits.point.add_(start)
            yield hits


def _project(local: Local, cameras: Cameras, convention: Convention) -> Hits:
    fx, fy, cx, cy = cameras.intrinsics.float()[..., None].unbind(1)
    x, y, z = local.x, local.y, local.z
    near, margin = NEAR_M, 0.5 * (FILL * MAX_SPAN - 1)
    if convention == "reference":
        u, v = (x * fx / z + cx).round(), (y * fy / z + cy).round()
        near, margin = 0.0, 0.0
    else:
        inverse = 1 / z
        u, v = x * fx * inverse + cx, y * fy * inverse + cy
    seen = (z > near) & (u >= -margin) & (u < cameras.width + margin)
    seen &= (v >= -margin) & (v < cameras.height + margin)
    num = z.shape[1]
    pair = seen.flatten().nonzero()[:, 0]
    view, point = pair // max(1, num), pair % max(1, num)
    x, y, z, u, v = (value.flatten().index_select(0, pair) for value in (x, y, z, u, v))
    if convention == "reference":
        return Hits(view, point, u, v, z, torch.zeros_like(z), torch.zeros_like(z), 0 * view)
    inverse = 1 / z
    focal_u, focal_v = (value[:, 0].index_select(0, view) * inverse for value in (fx, fy))
    size = local.size.index_select(0, point)
    span_u, span_v = size * focal_u, size * focal_v
    if local.recession is not None:
        a, b, c = (value.flatten().index_select(0, pair) for value in local.recession)
        span_u += ((a - c * x * inverse) * focal_u).abs()
        span_v += ((b - c * y * inverse) * focal_v).abs()
    aside = torch.zeros_like(view)
    if local.baseline is not None:
        baseline = local.baseline.flatten().index_select(0, pair)
        aside = (baseline / z * ASIDE).clamp(max=MOST_ASIDE).long()
    return Hits(view, point, u, v, z, span_u.clamp(max=MAX_SPAN), span_v.clamp(max=MAX_SPAN), aside)


def _length(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return ((x * x + y * y) + z * z).sqrt()


def _rotated(vector: Tensor, matrix: Tensor) -> tuple[Tensor, ...]:
    """(n, 3) by (3, 4, t, 1): (t, n) each; a matrix product may round by shape or device."""
    x, y, z = (column.contiguous() for column in vector.unbind(-1))
    return tuple(x * row[0] + y * row[1] + z * row[2] for row in matrix)


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
