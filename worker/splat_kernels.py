"""The exact z-buffer read compiled for CPUs: the same rules as worker/splat.py, bit for bit.

Points are streamed through the cache in blocks, once per pass and for all views together. A pass
over the visible blocks takes per cell the nearest depth; a second one, among the points on that
front surface, the best by (quality, newest source, distance from the cell's centre, row); `soft`
needs a third, for the tent weights. Blocks whose bounds no camera sees are skipped: they could not
change a bit. Each thread has minima of its own, and minima and sums of integers don't depend on
who computes which part. No temporary is larger than the readout, whatever the number of points.

Compiled by numba without contraction of products and sums, so that every rounding is that of the
plain torch twin. See worker/compiled.py for where the machine code is kept.

Axis legend: n points, b blocks, f frames, t cameras, h w the latent grid, c channels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from worker.compiled import compiled, inlined
from worker.projection import BLOCK, FILL, MAX_SPAN, NEAR_M, QUALITY_BITS, QUALITY_ZERO, SLANT_STEPS

F, I64 = np.float32, np.int64
NEAR, SPAN, WIDEN, HALF, ONE = F(NEAR_M), F(MAX_SPAN), F(FILL), F(0.5), F(1)
MARGIN = F(0.5 * (FILL * MAX_SPAN - 1))
STEP = F(1 / SLANT_STEPS)
TIGHT = F(1.03125)
LAST = F(2.0**40)
MIN_TENT = F(1 / 64)
WEIGHT_ONE = F(1 << 20)
TOKEN_ONE = F(1 << 24)
NOTHING = I64(np.iinfo(np.int64).max)
NO_SOURCE = I64(0x7FFFFFFF)
QUALITIES = (np.arange(QUALITY_ZERO, QUALITY_ZERO + 256, dtype=np.int32) << QUALITY_BITS).view(F)
STRETCHES = np.sqrt(ONE + np.square(np.arange(256, dtype=F) * STEP))
TILE = 16  # cells whose tokens are transposed together, a cache line of float32

Array = NDArray[Any]


class Rows(NamedTuple):
    """Columns of the points; NaN depth = removed."""

    depth: Array  # (n,) float32
    cell: Array  # (n,) int16 or int32, row * width + column in the point's frame
    slant: Array  # (n,) uint8
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
    intrinsics: Array  # (f, 4) float64 at the grid's size
    source: Array  # (f,) int32
    offset: float  # of a cell's ray: 0.5 = through its centre
    width: int  # of the frames' grid


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


@inlined
def relate(frames, frame, views, view, out):
    """M and b: a cell's (column, row, 1) times M, times depth, plus b, lies in the view's frame."""
    source, target, lens = frames.pose[frame], views.pose[view], frames.intrinsics[frame]
    for i in range(3):
        q = np.empty(3)
        for j in range(3):
            q[j] = (
                target[0, i] * source[0, j]
                + target[1, i] * source[1, j]
                + target[2, i] * source[2, j]
            )
        d0, d1 = q[0] / lens[0], q[1] / lens[1]
        out[i, 0], out[i, 1] = d0, d1
        out[i, 2] = (q[2] + (frames.offset - lens[2]) * d0) + (frames.offset - lens[3]) * d1
        out[i, 3] = (
            target[0, i] * (source[0, 3] - target[0, 3])
            + target[1, i] * (source[1, 3] - target[1, 3])
            + target[2, i] * (source[2, 3] - target[2, 3])
        )


@inlined
def locate(rows, start, count, frames, frame, views, view, m, out):
    """(5, count) u, v, z and spans of a block's points in one view."""
    relate(frames, frame, views, view, m)
    lens = views.intrinsics[view]
    fx, fy, cx, cy = F(lens[0]), F(lens[1]), F(lens[2]), F(lens[3])
    mean = 1.0 / (0.5 * (frames.intrinsics[frame, 0] + frames.intrinsics[frame, 1]))
    pitch = F(mean)
    width = F(frames.width)
    inverse = ONE / width
    x0, x1, x2, x3 = m[0, 0], m[0, 1], m[0, 2], m[0, 3]
    y0, y1, y2, y3 = m[1, 0], m[1, 1], m[1, 2], m[1, 3]
    z0, z1, z2, z3 = m[2, 0], m[2, 1], m[2, 2], m[2, 3]
    depth, cell = rows.depth[start : start + count], rows.cell[start : start + count]
    slant = rows.slant[start : start + count]
    us, vs, zs, spans_u, spans_v = out[0], out[1], out[2], out[3], out[4]
    for k in range(count):
        at = F(cell[k])
        r = np.floor((at + HALF) * inverse)
        c = at - r * width
        dx = (c * x0 + r * x1) + x2
        dy = (c * y0 + r * y1) + y2
        dz = (c * z0 + r * z1) + z2
        d = depth[k]
        x, y, z = d * dx + x3, d * dy + y3, d * dz + z3
        near = ONE / z
        size = d * pitch
        recedes = (F(slant[k]) * STEP) * size
        focal_u, focal_v = fx * near, fy * near
        us[k], vs[k], zs[k] = (x * fx) * near + cx, (y * fy) * near + cy, z
        a, b, e = recedes * dx, recedes * dy, recedes * dz
        span_u = size * focal_u + abs((a - (e * x) * near) * focal_u)
        span_v = size * focal_v + abs((b - (e * y) * near) * focal_v)
        spans_u[k] = span_u if span_u < SPAN else SPAN
        spans_v[k] = span_v if span_v < SPAN else SPAN


@inlined
def first_cell(u, width):
    return max(I64(0), I64(np.floor(u + (HALF - HALF * width))))


@inlined
def last_cell(u, width, end):
    return min(end - 1, I64(np.floor(u - (HALF - HALF * width))))


@inlined
def seen(u, v, z, h, w):
    return z > NEAR and u >= -MARGIN and u < F(w) + MARGIN and v >= -MARGIN and v < F(h) + MARGIN


@compiled
def cull(blocks, frames, views, pairs):
    """Pairs of a block and a view that may see it, block by block; returns their number."""
    planes = np.empty((len(views.pose), 5, 4))
    margin = MARGIN + 0.01
    for t in range(len(views.pose)):
        pose, (fx, fy, cx, cy) = views.pose[t], views.intrinsics[t]
        for i in range(3):
            x, y, z = pose[i, 0], pose[i, 1], pose[i, 2]
            planes[t, 0, i] = z
            planes[t, 1, i] = fx * x + (cx + margin) * z
            planes[t, 2, i] = (views.width + margin - cx) * z - fx * x
            planes[t, 3, i] = fy * y + (cy + margin) * z
            planes[t, 4, i] = (views.height + margin - cy) * z - fy * y
    num = 0
    for block in range(len(blocks.start)):
        eye = frames.pose[blocks.frame[block]]
        low, high = blocks.low[block], blocks.high[block]
        if not low[0] <= high[0]:
            continue
        for t in range(len(views.pose)):
            pose = views.pose[t]
            visible = True
            for p in range(5):
                reach = 0.0
                for i in range(3):
                    normal = planes[t, p, i]
                    end = high[i] if normal > 0 else low[i]
                    reach += normal * (end + (eye[i, 3] - pose[i, 3]))
                if reach < (0.9 * NEAR if p == 0 else -1e-3 * abs(reach)):
                    visible = False
                    break
            if visible:
                pairs[num, 0], pairs[num, 1] = block, t
                num += 1
    return num


@compiled
def nearest_depths(rows, blocks, frames, views, pairs, front):
    """Lower front (t * h * w,) to the smallest depth, rims behind everything."""
    h, w = I64(views.height), I64(views.width)
    m, local = np.empty((3, 4), F), np.empty((5, BLOCK), F)
    for block, view in pairs:
        count, frame = blocks.length[block], blocks.frame[block]
        locate(rows, blocks.start[block], count, frames, frame, views, view, m, local)
        base = I64(view) * h * w
        for k in range(count):
            u, v, z = local[0, k], local[1, k], local[2, k]
            if not seen(u, v, z, h, w):
                continue
            span_u, span_v = local[3, k], local[4, k]
            wide, high = max(span_u * WIDEN, ONE), max(span_v * WIDEN, ONE)
            left, right = first_cell(u, wide), last_cell(u, wide, w)
            top, bottom = first_cell(v, high), last_cell(v, high, h)
            half_u, half_v = HALF * max(span_u * TIGHT, ONE), HALF * max(span_v * TIGHT, ONE)
            for row in range(top, bottom + 1):
                dv = v - (F(row) + HALF)
                tight = dv >= -half_v and dv < half_v
                for column in range(left, right + 1):
                    du = u - (F(column) + HALF)
                    key = z if tight and du >= -half_u and du < half_u else z * LAST
                    cell = base + row * w + column
                    front[cell] = min(front[cell], key)


@compiled
def best_points(rows, blocks, frames, views, pairs, limit, rank, distance, winner, place):
    """Per cell the best point on the front surface, for pairs in ascending order of rows."""
    h, w = I64(views.height), I64(views.width)
    m, local = np.empty((3, 4), F), np.empty((5, BLOCK), F)
    for block, view in pairs:
        count, frame, start = blocks.length[block], blocks.frame[block], blocks.start[block]
        locate(rows, start, count, frames, frame, views, view, m, local)
        base, newest = I64(view) * h * w, NO_SOURCE - I64(frames.source[frame])
        for k in range(count):
            u, v, z = local[0, k], local[1, k], local[2, k]
            if not seen(u, v, z, h, w):
                continue
            span_u, span_v = local[3, k], local[4, k]
            wide, high = max(span_u * WIDEN, ONE), max(span_v * WIDEN, ONE)
            left, right = first_cell(u, wide), last_cell(u, wide, w)
            top, bottom = first_cell(v, high), last_cell(v, high, h)
            half_u, half_v = HALF * max(span_u * TIGHT, ONE), HALF * max(span_v * TIGHT, ONE)
            mine = (I64(255) - I64(rows.quality[start + k])) << 32 | newest
            for row in range(top, bottom + 1):
                dv = v - (F(row) + HALF)
                tight = dv >= -half_v and dv < half_v
                for column in range(left, right + 1):
                    du = u - (F(column) + HALF)
                    key = z if tight and du >= -half_u and du < half_u else z * LAST
                    cell = base + row * w + column
                    if key > limit[cell] or mine > rank[cell]:
                        continue
                    apart = du * du + dv * dv
                    if mine < rank[cell] or apart < distance[cell]:
                        rank[cell], distance[cell] = mine, apart
                        winner[cell] = start + k
                        place[0, cell], place[1, cell], place[2, cell] = z, du, dv
                        place[3, cell], place[4, cell] = span_u, span_v


@compiled
def merge(rank, distance, winner, place):
    """Fold the threads' tables (p, t * h * w), in order of rows, into the first."""
    for part in range(1, len(rank)):
        for cell in range(rank.shape[1]):
            mine, apart = rank[part, cell], distance[part, cell]
            if mine < rank[0, cell] or (mine == rank[0, cell] and apart < distance[0, cell]):
                rank[0, cell], distance[0, cell] = mine, apart
                winner[0, cell] = winner[part, cell]
                for i in range(5):
                    place[0, i, cell] = place[part, i, cell]


@compiled
def tents(rows, blocks, frames, views, pairs, limit, rank, total):
    """Fragments (cell, row, weight) of the chosen frames' visible points; adds to total."""
    h, w = I64(views.height), I64(views.width)
    m, local = np.empty((3, 4), F), np.empty((5, BLOCK), F)
    fragments, num = np.empty((max(1024, 2 * len(limit)), 3), np.int32), 0
    for block, view in pairs:
        count, frame, start = blocks.length[block], blocks.frame[block], blocks.start[block]
        locate(rows, start, count, frames, frame, views, view, m, local)
        base, newest = I64(view) * h * w, NO_SOURCE - I64(frames.source[frame])
        for k in range(count):
            u, v, z = local[0, k], local[1, k], local[2, k]
            if not seen(u, v, z, h, w):
                continue
            span_u, span_v = local[3, k], local[4, k]
            mine = (I64(255) - I64(rows.quality[start + k])) << 32 | newest
            if not chosen(u, v, z, span_u, span_v, base, h, w, limit, rank, mine):
                continue
            wide, high = max(span_u, ONE), max(span_v, ONE)
            left, right = first_cell(u, F(2) * wide), last_cell(u, F(2) * wide, w)
            top, bottom = first_cell(v, F(2) * high), last_cell(v, F(2) * high, h)
            for row in range(top, bottom + 1):
                dv = v - (F(row) + HALF)
                tent_v = max(ONE - abs(dv) / high, F(0))
                for column in range(left, right + 1):
                    cell = base + row * w + column
                    front = limit[cell] / LAST if limit[cell] >= LAST * NEAR else limit[cell]
                    if rank[cell] & NO_SOURCE != newest or z > front:
                        continue
                    tent = max(ONE - abs(u - (F(column) + HALF)) / wide, F(0)) * tent_v
                    if tent < MIN_TENT:
                        continue
                    if num == len(fragments):
                        larger = np.empty((2 * num, 3), np.int32)
                        larger[:num] = fragments
                        fragments = larger
                    weight = I64(np.rint(tent * WEIGHT_ONE))
                    total[cell] += weight
                    fragments[num, 0], fragments[num, 1] = cell, start + k
                    fragments[num, 2] = weight
                    num += 1
    return fragments[:num]


@inlined
def chosen(u, v, z, span_u, span_v, base, h, w, limit, rank, mine):
    """Whether the point is of the best rank on the front surface of any cell that it covers."""
    wide, high = max(span_u * WIDEN, ONE), max(span_v * WIDEN, ONE)
    half_u, half_v = HALF * max(span_u * TIGHT, ONE), HALF * max(span_v * TIGHT, ONE)
    for row in range(first_cell(v, high), last_cell(v, high, h) + 1):
        dv = v - (F(row) + HALF)
        tight = dv >= -half_v and dv < half_v
        for column in range(first_cell(u, wide), last_cell(u, wide, w) + 1):
            cell = base + row * w + column
            if mine != rank[cell]:
                continue
            du = u - (F(column) + HALF)
            key = z if tight and du >= -half_u and du < half_u else z * LAST
            if key <= limit[cell]:
                return True
    return False


@compiled
def order(fragments, begin, out):
    """Place fragments by cell; begin (t * h * w,) is where each cell's go, advanced."""
    for k in range(len(fragments)):
        at = begin[fragments[k, 0]]
        out[at, 0], out[at, 1] = fragments[k, 1], fragments[k, 2]
        begin[fragments[k, 0]] = at + 1


@inlined
def decode(tokens, row, out):
    """A point's token as float32 from its bfloat16 bits, or from int8 and scale."""
    large, small, scale = tokens
    if len(small):
        for c in range(small.shape[1]):
            out[c] = F(small[row, c]) * scale[row]
    else:
        bits = out.view(np.int32)
        for c in range(large.shape[1]):
            bits[c] = np.int32(large[row, c]) << 16


@compiled
def gather(tokens, winner, first, last, out):
    """Tokens of the winners of cells first..last into out (t, c, h * w)."""
    channels, size = out.shape[1], out.shape[2]
    tile, token = np.empty((channels, TILE), F), np.empty(channels, F)
    for begin in range(first, last, TILE):
        end = min(begin + TILE, last)
        for cell in range(begin, end):
            if winner[cell] < 0:
                for c in range(channels):
                    tile[c, cell - begin] = F(0)
                continue
            decode(tokens, winner[cell], token)
            for c in range(channels):
                tile[c, cell - begin] = token[c]
        spill(tile, begin, end, size, out)


@compiled
def blend(tokens, begin, fragments, total, first, last, out):
    """Weighted tokens of cells first..last, summed in fixed point, into out (t, c, h * w)."""
    channels, size = out.shape[1], out.shape[2]
    tile, token = np.empty((channels, TILE), F), np.empty(channels, F)
    sums = np.empty(channels, I64)
    for start in range(first, last, TILE):
        end = min(start + TILE, last)
        for cell in range(start, end):
            for c in range(channels):
                sums[c] = 0
            for k in range(begin[cell], begin[cell + 1]):
                weight = F(np.float64(fragments[k, 1]) / np.float64(total[cell]))
                decode(tokens, fragments[k, 0], token)
                for c in range(channels):
                    sums[c] += I64(np.rint((token[c] * weight) * TOKEN_ONE))
            for c in range(channels):
                tile[c, cell - start] = F(np.float64(sums[c]) / np.float64(TOKEN_ONE))
        spill(tile, start, end, size, out)


@inlined
def spill(tile, begin, end, size, out):
    """Write the columns of a tile to cells begin..end."""
    if begin // size == (end - 1) // size:
        view, at = begin // size, begin % size
        for c in range(len(tile)):
            for k in range(end - begin):
                out[view, c, at + k] = tile[c, k]
        return
    for cell in range(begin, end):
        for c in range(len(tile)):
            out[cell // size, c, cell % size] = tile[c, cell - begin]


@compiled
def describe(rank, winner, place, limit, numbers, indices):
    """Coverage, quality, depth, offset, span (t, 7, h * w) and winner, source (2, t * h * w)."""
    size = numbers.shape[2]
    for cell in range(len(rank)):
        view, at = cell // size, cell % size
        if rank[cell] == NOTHING:
            for i in range(7):
                numbers[view, i, at] = F(0)
            indices[0, cell], indices[1, cell] = -1, -1
            continue
        numbers[view, 0, at] = HALF if limit[cell] >= LAST * NEAR else ONE
        numbers[view, 1, at] = QUALITIES[I64(255) - (rank[cell] >> 32)]
        for i in range(5):
            numbers[view, 2 + i, at] = place[i, cell]
        indices[0, cell], indices[1, cell] = winner[cell], NO_SOURCE - (rank[cell] & NO_SOURCE)


@compiled
def judge(rows, blocks, frames, views, pairs, scene, rules):
    """Rows that new views replace, and rows that they see through: (m, 2) row and kind.

    A row is listed once per view and kind; see worker/memory/verdicts.py for the rules.
    """
    h, w = I64(views.height), I64(views.width)
    m, local = np.empty((3, 4), F), np.empty((5, BLOCK), F)
    found, num = np.empty((4096, 2), I64), 0
    for block, view in pairs:
        count, frame, start = blocks.length[block], blocks.frame[block], blocks.start[block]
        locate(rows, start, count, frames, frame, views, view, m, local)
        lens = views.intrinsics[view]
        fx, fy, cx, cy = F(lens[0]), F(lens[1]), F(lens[2]), F(lens[3])
        pitch = F(1.0 / (0.5 * (frames.intrinsics[frame, 0] + frames.intrinsics[frame, 1])))
        footprint = F(1.0 / (0.5 * (lens[0] + lens[1])))
        for k in range(count):
            u, v, z = local[0, k], local[1, k], local[2, k]
            if not (z > NEAR and u >= 0 and u < F(w) and v >= 0 and v < F(h)):
                continue
            row, column = I64(np.floor(v)), I64(np.floor(u))
            at = (I64(view) * h + row) * w + column
            code = I64(rows.quality[start + k])
            size = rows.depth[start + k] * pitch
            if num + 2 > len(found):
                larger = np.empty((2 * len(found), 2), I64)
                larger[:num] = found[:num]
                found = larger
            if (
                z < scene.clear[at]
                and code <= scene.may_strike[at]
                and z * footprint <= F(rules.coarser) * size
            ):
                found[num, 0], found[num, 1] = start + k, 1
                num += 1
            if not scene.replaces[at] or code > scene.may_replace[at]:
                continue
            depth, extent = scene.depth[at], scene.extent[at]
            mine = size * STRETCHES[rows.slant[start + k]]
            x = ((u - cx) * z - ((F(column) + HALF) - cx) * depth) / fx
            y = ((v - cy) * z - ((F(row) + HALF) - cy) * depth) / fy
            apart = (x * x + y * y) + (z - depth) * (z - depth)
            reach = max(mine, extent)
            hides = z < depth and code <= scene.outranks[at]
            if not (hides or apart <= reach * reach):
                continue
            if scene.inside[at] or mine <= F(rules.same_extent) * extent:
                found[num, 0], found[num, 1] = start + k, 0
                num += 1
    return found[:num]
