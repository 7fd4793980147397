"""The exact z-buffer read on a GPU: the rules of worker/splat/plain.py in kernels, bit for bit.

One kernel lifts, projects and keys the points of all sessions for all their views, in three passes:
per cell the nearest depth; among the points on that front surface the best (quality, newest
source); among that frame's points the one nearest to the cell's centre (then the lowest row). Each
is an atomic minimum over integers, so no order of threads changes a bit, and a plain load skips the
points that can't win. A second surface (the next one behind, or what another frame tells) takes
three more, with the first one's depths and ranks in hand. A second kernel places the winners again
and gathers what they show. A block of rows that a view can't see leaves at once. Nothing comes back
to the host in between, and sizes follow from the sessions' tables alone, so a read can be captured
in a CUDA graph.

Divisions are rounded, products and sums never fused (`enable_fp_fusion`), poses meet in float64: as
in the torch twin, which tests compare with, on a GPU or in Triton's interpreter.

Points may be looked at in parts, those of every cell whose depths are known: a block then takes one
program per part.

Axis legend: s sessions, b blocks of a session, t cameras, h w the latent grid, c channels.
"""

from __future__ import annotations

import triton
import triton.language as tl

from worker.placed import FINER
from worker.projection import (
    ASIDE,
    BLOCK,
    FILL,
    MAX_SPAN,
    MOST_ASIDE,
    NEAR_M,
    QUALITY_BITS,
    QUALITY_ZERO,
    RELIEF_STEPS,
    SLANT_STEPS,
)
from worker.splat.plain import FRONT_RATIO, LAST, NO_SOURCE, NOTHING, RIM_COVERAGE, TIGHT

C = tl.constexpr
_BLOCK, _BLOCK_BITS = C(BLOCK), C(BLOCK.bit_length() - 1)
_FILL, _TIGHT, _SPAN, _NEAR = C(FILL), C(TIGHT), C(MAX_SPAN), C(NEAR_M)
_MARGIN, _STEP = C(0.5 * (FILL * MAX_SPAN - 1)), C(1 / SLANT_STEPS)
_ASIDE, _MOST_ASIDE = C(ASIDE), C(float(MOST_ASIDE))
_FINER, _RELIEF_STEP = C(FINER), C(1 / RELIEF_STEPS)
_FRONT, _LAST, _RIM = C(1 + FRONT_RATIO), C(LAST), C(RIM_COVERAGE)
_NOTHING, _NO_SOURCE = C(NOTHING), C(NO_SOURCE)
_QUALITY_BITS, _QUALITY_ZERO = C(QUALITY_BITS), C(QUALITY_ZERO)
_CULL_NEAR, _CULL_MARGIN, _CULL_SLACK = (
    C(0.9 * NEAR_M),
    C(0.5 * (FILL * MAX_SPAN - 1) + 0.01),
    C(-1e-3),
)

# A session's row of the table: where its columns lie, then how many blocks it has.
COLUMNS = (
    "cell", "depth", "slant", "relief", "quality", "tokens", "scale",
    "start", "length", "frame", "low", "high",
    "world_from_camera", "intrinsics", "source",
)  # fmt: skip
WIDTH = len(COLUMNS) + 1
_WIDTH = C(WIDTH)
_CELL, _DEPTH, _SLANT, _RELIEF, _QUALITY, _TOKENS, _SCALE = (C(i) for i in range(7))
_START, _LENGTH, _FRAME, _LOW, _HIGH, _POSE, _LENS, _SOURCE, _NUM = (C(i) for i in range(7, 16))


@triton.jit
def _column(table, session, number, dtype: tl.constexpr):
    return tl.load(table + session * _WIDTH + number).to(tl.pointer_type(dtype))


@triton.jit
def _axis(source, fx, fy, cx, cy, target, offset, i: tl.constexpr):
    """A row of M and b: a cell's (column, row, 1) times M, times its depth, plus b, is in view."""
    t0, t1, t2 = tl.load(target + i), tl.load(target + 4 + i), tl.load(target + 8 + i)
    q0 = (t0 * tl.load(source) + t1 * tl.load(source + 4)) + t2 * tl.load(source + 8)
    q1 = (t0 * tl.load(source + 1) + t1 * tl.load(source + 5)) + t2 * tl.load(source + 9)
    q2 = (t0 * tl.load(source + 2) + t1 * tl.load(source + 6)) + t2 * tl.load(source + 10)
    b0 = tl.load(source + 3) - tl.load(target + 3)
    b1 = tl.load(source + 7) - tl.load(target + 7)
    b2 = tl.load(source + 11) - tl.load(target + 11)
    d0, d1 = q0 / fx, q1 / fy
    d2 = (q2 + (offset - cx) * d0) + (offset - cy) * d1
    b = (t0 * b0 + t1 * b1) + t2 * b2
    return d0.to(tl.float32), d1.to(tl.float32), d2.to(tl.float32), b.to(tl.float32)


@triton.jit
def _depth(table, session, row, part, mask, PARTS: tl.constexpr):
    """Of points, or of one part of each."""
    depth = tl.load(_column(table, session, _DEPTH, tl.float32) + row, mask=mask, other=1.0)
    if PARTS > 1:
        column = _column(table, session, _RELIEF, tl.int8) + row * PARTS + part
        code = tl.load(column, mask=mask, other=0).to(tl.float32)
        factor = 1.0 + (code * code) * _RELIEF_STEP
        one = tl.full(factor.shape, 1.0, tl.float32)
        depth = depth * tl.where(code < 0, tl.div_rn(one, factor), factor)
    return depth


@triton.jit
def _place(
    depth,
    cell,
    part,
    slant,
    pose,
    lens,
    view_pose,
    view_lens,
    offset,
    grid_width,
    PARTS: tl.constexpr,
):
    """u, v, z, spans and the baseline in one view of points of a frame, or of one part of each;
    `pose` and `lens` may differ by point.
    """
    sx, sy = tl.load(lens), tl.load(lens + 1)
    cx, cy = tl.load(lens + 2), tl.load(lens + 3)
    if PARTS > 1:
        sx, sy, cx, cy = sx * _FINER, sy * _FINER, cx * _FINER, cy * _FINER
    x0, x1, x2, x3 = _axis(pose, sx, sy, cx, cy, view_pose, offset, 0)
    y0, y1, y2, y3 = _axis(pose, sx, sy, cx, cy, view_pose, offset, 1)
    z0, z1, z2, z3 = _axis(pose, sx, sy, cx, cy, view_pose, offset, 2)
    pitch = (1.0 / (0.5 * (sx + sy))).to(tl.float32)
    fx, fy = tl.load(view_lens).to(tl.float32), tl.load(view_lens + 1).to(tl.float32)
    cu, cv = tl.load(view_lens + 2).to(tl.float32), tl.load(view_lens + 3).to(tl.float32)
    line = cell // grid_width
    across = cell - line * grid_width
    if PARTS > 1:
        line, across = line * _FINER + part // _FINER, across * _FINER + part % _FINER
    column, row = across.to(tl.float32), line.to(tl.float32)
    dx = (column * x0 + row * x1) + x2
    dy = (column * y0 + row * y1) + y2
    dz = (column * z0 + row * z1) + z2
    x, y, z = depth * dx + x3, depth * dy + y3, depth * dz + z3
    inverse = tl.div_rn(tl.full(z.shape, 1.0, tl.float32), z)
    u, v = (x * fx) * inverse + cu, (y * fy) * inverse + cv
    size = depth * pitch
    recedes = (slant.to(tl.float32) * _STEP) * size
    focal_u, focal_v = fx * inverse, fy * inverse
    a, b, e = recedes * dx, recedes * dy, recedes * dz
    span_u = size * focal_u + tl.abs((a - (e * x) * inverse) * focal_u)
    span_v = size * focal_v + tl.abs((b - (e * y) * inverse) * focal_v)
    baseline = tl.sqrt_rn((x3 * x3 + y3 * y3) + z3 * z3)
    return u, v, z, tl.minimum(span_u, _SPAN), tl.minimum(span_v, _SPAN), baseline


@triton.jit
def _is_visible(low, high, pose, view_pose, view_lens, height, width):
    """Whether any centre within a block's bounds may lie in view; never wrongly no."""
    fx, fy = tl.load(view_lens), tl.load(view_lens + 1)
    cx, cy = tl.load(view_lens + 2), tl.load(view_lens + 3)
    ahead = fx * 0.0
    left, right, top, bottom = ahead, ahead, ahead, ahead
    for i in tl.static_range(3):
        x, y = tl.load(view_pose + 4 * i), tl.load(view_pose + 4 * i + 1)
        z = tl.load(view_pose + 4 * i + 2)
        apart = tl.load(pose + 4 * i + 3) - tl.load(view_pose + 4 * i + 3)
        near = tl.load(low + i).to(tl.float64) + apart
        far = tl.load(high + i).to(tl.float64) + apart
        ahead += tl.maximum(z * near, z * far)
        n = fx * x + (cx + _CULL_MARGIN) * z
        left += tl.maximum(n * near, n * far)
        n = (width + _CULL_MARGIN - cx) * z - fx * x
        right += tl.maximum(n * near, n * far)
        n = fy * y + (cy + _CULL_MARGIN) * z
        top += tl.maximum(n * near, n * far)
        n = (height + _CULL_MARGIN - cy) * z - fy * y
        bottom += tl.maximum(n * near, n * far)
    visible = (ahead >= _CULL_NEAR) & (left >= _CULL_SLACK * tl.abs(left))
    visible &= right >= _CULL_SLACK * tl.abs(right)
    visible &= top >= _CULL_SLACK * tl.abs(top)
    return visible & (bottom >= _CULL_SLACK * tl.abs(bottom))


@triton.jit
def scan(
    table,
    view_poses,
    view_lenses,
    front,
    rank,
    first,
    hidden,
    taken,
    num_views,
    height,
    width,
    grid_width,
    PASS: tl.constexpr,
    SECOND: tl.constexpr,
    WITNESS: tl.constexpr,
    OFFSET: tl.constexpr,
    CELL: tl.constexpr,
    PARTS: tl.constexpr,
):
    """One pass over a block of one session's rows, or over one part of each, for one of its views.

    SECOND: only what lies beyond the surface whose nearest depths `hidden` holds, or (WITNESS) is
    told by another frame than its winners, whose ranks `taken` holds; without rims. Views may have
    other sizes than the frames' grid, which is grid_width wide.
    """
    session, view = tl.program_id(2), tl.program_id(1)
    block, part = tl.program_id(0) // PARTS, tl.program_id(0) % PARTS
    if block >= tl.load(table + session * _WIDTH + _NUM):
        return
    number = session * num_views + view
    view_pose, view_lens = view_poses + number * 16, view_lenses + number * 4
    frame = tl.load(_column(table, session, _FRAME, tl.int32) + block)
    pose = _column(table, session, _POSE, tl.float64) + frame * 16
    lens = _column(table, session, _LENS, tl.float64) + frame * 4
    low = _column(table, session, _LOW, tl.float32) + block * 3
    high = _column(table, session, _HIGH, tl.float32) + block * 3
    if not _is_visible(low, high, pose, view_pose, view_lens, height, width):
        return
    k = tl.arange(0, _BLOCK)
    inside = k < tl.load(_column(table, session, _LENGTH, tl.int32) + block)
    row = tl.load(_column(table, session, _START, tl.int64) + block) + k
    depth = _depth(table, session, row, part, inside, PARTS)
    cell = tl.load(_column(table, session, _CELL, CELL) + row, mask=inside, other=0).to(tl.int32)
    slant = tl.load(_column(table, session, _SLANT, tl.uint8) + row, mask=inside, other=0)
    u, v, z, span_u, span_v, baseline = _place(
        depth, cell, part, slant, pose, lens, view_pose, view_lens, OFFSET, grid_width, PARTS
    )
    seen = inside & (z > _NEAR) & (u >= -_MARGIN) & (u < width + _MARGIN)
    seen &= (v >= -_MARGIN) & (v < height + _MARGIN)
    u, v = tl.where(seen, u, 0.0), tl.where(seen, v, 0.0)
    span_u, span_v = tl.where(seen, span_u, 1.0), tl.where(seen, span_v, 1.0)
    half_u = 0.5 * tl.maximum(span_u * _FILL, 1.0)
    half_v = 0.5 * tl.maximum(span_v * _FILL, 1.0)
    left = tl.maximum(tl.floor(u + (0.5 - half_u)).to(tl.int32), 0)
    top = tl.maximum(tl.floor(v + (0.5 - half_v)).to(tl.int32), 0)
    columns = tl.minimum(tl.floor(u - (0.5 - half_u)).to(tl.int32), width - 1) - left + 1
    rows = tl.minimum(tl.floor(v - (0.5 - half_v)).to(tl.int32), height - 1) - top + 1
    columns, rows = tl.where(seen, columns, 0), tl.where(seen, rows, 0)
    tight_u = 0.5 * tl.maximum(span_u * _TIGHT, 1.0)
    tight_v = 0.5 * tl.maximum(span_v * _TIGHT, 1.0)
    source = tl.load(_column(table, session, _SOURCE, tl.int32) + frame)
    newest = _NO_SOURCE - source.to(tl.int64)
    if PASS > 0:
        quality = tl.load(
            _column(table, session, _QUALITY, tl.uint8) + row, mask=inside, other=0
        ).to(tl.int64)
        lost = tl.div_rn(tl.zeros_like(z) + baseline, tl.where(seen, z, 1.0)) * _ASIDE
        worth = quality - tl.minimum(lost, _MOST_ASIDE).to(tl.int64)
        mine = ((255 - tl.maximum(worth, 0)) << 32) | newest
    base = number * height * width
    for i in range(tl.max(rows)):
        dv = v - ((top + i).to(tl.float32) + 0.5)
        for j in range(tl.max(columns)):
            du = u - ((left + j).to(tl.float32) + 0.5)
            active = (i < rows) & (j < columns)
            tight = (dv >= -tight_v) & (dv < tight_v) & (du >= -tight_u) & (du < tight_u)
            key = tl.where(tight, z, z * _LAST)
            at = base + (top + i) * width + (left + j)
            if SECOND:
                other = tl.load(hidden + at, mask=active, other=0)
                second = key > other.to(tl.float32, bitcast=True) * _FRONT
                if WITNESS:
                    best = tl.load(taken + at, mask=active, other=_NOTHING)
                    second |= (best != _NOTHING) & ((best & _NO_SOURCE) != newest)
                active &= second & (key < _LAST * _NEAR)
            if PASS == 0:
                bits = key.to(tl.int32, bitcast=True)
                active &= bits < tl.load(front + at, mask=active, other=0)
                tl.atomic_min(front + at, bits, mask=active, sem="relaxed")
            else:
                nearest = tl.load(front + at, mask=active, other=0)
                active &= key <= nearest.to(tl.float32, bitcast=True) * _FRONT
                best = tl.load(rank + at, mask=active, other=0)
                if PASS == 1:
                    tl.atomic_min(rank + at, mine, mask=active & (mine < best), sem="relaxed")
                else:
                    apart = (du * du + dv * dv).to(tl.int32, bitcast=True).to(tl.int64)
                    which = ((block.to(tl.int64) << _BLOCK_BITS) | k) * PARTS + part
                    entry = (apart << 32) | which
                    active &= mine == best
                    active &= entry < tl.load(first + at, mask=active, other=0)
                    tl.atomic_min(first + at, entry, mask=active, sem="relaxed")


@triton.jit
def gather(
    table,
    view_poses,
    view_lenses,
    front,
    rank,
    first,
    numbers,
    indices,
    shown,
    num_views,
    height,
    width,
    grid_width,
    OFFSET: tl.constexpr,
    CELL: tl.constexpr,
    PARTS: tl.constexpr,
    INT8: tl.constexpr,
    CHANNELS: tl.constexpr,
    PADDED: tl.constexpr,
    TILE: tl.constexpr,
):
    """What the winners of a tile of one view's cells show; see `Surface` for the outputs."""
    number = tl.program_id(1)
    session = number // num_views
    size = height * width
    at = tl.program_id(0) * TILE + tl.arange(0, TILE)
    inside = at < size
    cell = number * size + at
    best = tl.load(rank + cell, mask=inside, other=_NOTHING)
    covered = best != _NOTHING
    entry = tl.load(first + cell, mask=covered, other=0) & 0xFFFFFFFF
    part, entry = (entry % PARTS).to(tl.int32), entry // PARTS
    block, k = entry >> _BLOCK_BITS, entry & (_BLOCK - 1)
    frame = tl.load(_column(table, session, _FRAME, tl.int32) + block, mask=covered, other=0)
    start = tl.load(_column(table, session, _START, tl.int64) + block, mask=covered, other=0)
    row = start + k
    depth = _depth(table, session, row, part, covered, PARTS)
    seat = tl.load(_column(table, session, _CELL, CELL) + row, mask=covered, other=0).to(tl.int32)
    slant = tl.load(_column(table, session, _SLANT, tl.uint8) + row, mask=covered, other=0)
    u, v, z, span_u, span_v, _ = _place(
        depth,
        seat,
        part,
        slant,
        _column(table, session, _POSE, tl.float64) + frame * 16,
        _column(table, session, _LENS, tl.float64) + frame * 4,
        view_poses + number * 16,
        view_lenses + number * 4,
        OFFSET,
        grid_width,
        PARTS,
    )
    line = at // width
    du = u - ((at - line * width).to(tl.float32) + 0.5)
    dv = v - (line.to(tl.float32) + 0.5)
    nearest = tl.load(front + cell, mask=covered, other=0).to(tl.float32, bitcast=True)
    coverage = tl.where(nearest * _FRONT >= _LAST * _NEAR, _RIM, 1.0)
    code = (255 - (best >> 32)).to(tl.int32)
    quality = ((code + _QUALITY_ZERO) << _QUALITY_BITS).to(tl.float32, bitcast=True)
    out = numbers + number * 7 * size + at
    tl.store(out, tl.where(covered, coverage, 0.0), mask=inside)
    tl.store(out + size, tl.where(covered, quality, 0.0), mask=inside)
    tl.store(out + 2 * size, tl.where(covered, z, 0.0), mask=inside)
    tl.store(out + 3 * size, tl.where(covered, du, 0.0), mask=inside)
    tl.store(out + 4 * size, tl.where(covered, dv, 0.0), mask=inside)
    tl.store(out + 5 * size, tl.where(covered, span_u, 0.0), mask=inside)
    tl.store(out + 6 * size, tl.where(covered, span_v, 0.0), mask=inside)
    source = _NO_SOURCE - (best & _NO_SOURCE)
    out = indices + (2 if PARTS == 1 else 3) * number * size + at
    tl.store(out, tl.where(covered, row, -1), mask=inside)
    tl.store(out + size, tl.where(covered, source, -1), mask=inside)
    if PARTS > 1:
        tl.store(out + 2 * size, tl.where(covered, part, 0).to(tl.int64), mask=inside)
    if CHANNELS > 0:
        c = tl.arange(0, PADDED)
        known = covered[:, None] & (c < CHANNELS)[None, :]
        where = row[:, None] * CHANNELS + c[None, :]
        if INT8:
            values = tl.load(_column(table, session, _TOKENS, tl.int8) + where, mask=known, other=0)
            scale = tl.load(
                _column(table, session, _SCALE, tl.float32) + row, mask=covered, other=0.0
            )
            token = values.to(tl.float32) * scale[:, None]
        else:
            bits = tl.load(_column(table, session, _TOKENS, tl.int16) + where, mask=known, other=0)
            token = (bits.to(tl.int32) << 16).to(tl.float32, bitcast=True)
        place = (number * CHANNELS + c[None, :]) * size + at[:, None]
        tl.store(shown + place, token, mask=inside[:, None] & (c < CHANNELS)[None, :])
