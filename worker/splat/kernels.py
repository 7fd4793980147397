"""The exact z-buffer read compiled for CPUs: the same rules as worker/splat/plain.py, bit for bit.

Points are streamed through the cache in blocks, once per pass and for all views together. A pass
over the visible blocks takes per cell the nearest depth; a second one, among the points on that
front surface, the best by (quality, newest source, distance from the cell's centre, row); `soft`
needs a third, for the tent weights. A second surface (the next one behind, or what another frame
tells) is found by the same two passes with the first one's limits and frames in hand. Blocks whose
bounds no camera sees are skipped: they could not change a bit. Each thread has minima of its own,
and minima and sums of integers don't depend on who computes which part. No temporary is larger than
the readout, whatever the number of points.

Speed comes from loops without branches, which become vector instructions: what a block's points
have in common for all views (`unpack`), where they lie in one (`project`), which cells they cover
(`settle`), and for each of the up to 2 x 2 cells that most patches cover, which cell and at what
depth (`corner`). Only then are minima taken, one point at a time; a point that covers no such cell
lowers one of a few spare ones, not one and the same, or each would wait for the one before. A token
lies in one piece and a readout holds each channel of all cells in one piece, so tokens are turned
in tiles: whole cache lines are written, one after the other, whatever the size of the grid.

Points may be looked at in parts, FINER by FINER of every cell, whose depths are known: a block then
is taken once per part.

Compiled by numba without contraction of products and sums, so that every rounding is that of the
plain torch twin. All that calls one another is in one file, as cached machine code (see
worker/splat/compiled.py) is told apart by the file of its outermost function.

Axis legend: t cameras, h w the latent grid, c channels, p parts (threads).
"""

from __future__ import annotations

import numpy as np

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
from worker.splat.compiled import compiled, inlined

F, I32, I64 = np.float32, np.int32, np.int64
NEAR, SPAN, WIDEN, HALF, ONE = F(NEAR_M), F(MAX_SPAN), F(FILL), F(0.5), F(1)
MARGIN = F(0.5 * (FILL * MAX_SPAN - 1))
STEP = F(1 / SLANT_STEPS)
LOSS, MOST_LOSS = F(ASIDE), F(MOST_ASIDE)
OUTSIDE = F(-MAX_SPAN - 4)  # farther out than any patch reaches
TIGHT = F(1.03125)
LAST = F(2.0**40)
MIN_TENT = F(1 / 64)
WEIGHT_ONE = F(1 << 20)
NOTHING = I64(np.iinfo(np.int64).max)
NO_SOURCE = I64(0x7FFFFFFF)
TOKEN_ONE = F(1 << 24)
QUALITIES = (np.arange(QUALITY_ZERO, QUALITY_ZERO + 256, dtype=np.int32) << QUALITY_BITS).view(F)
STEPS = np.square(np.arange(-128, 128, dtype=F)) / F(RELIEF_STEPS)
RELIEFS = np.where(np.arange(-128, 128) < 0, ONE / (ONE + STEPS), ONE + STEPS)  # by code + 128
STRETCHES = np.sqrt(ONE + np.square(np.arange(256, dtype=F) * STEP))
SPARE = 64  # cells beyond the last one, for what covers none
TILE = 128  # cells whose tokens are turned together: writes of whole lines, one after the other


@inlined
def relate(frames, frame, views, view, out):
    """M and b: a cell's (column, row, 1) times M, times depth, plus b, lies in the view's frame."""
    source, target, lens = frames.pose[frame], views.pose[view], frames.intrinsics[frame]
    b0, b1, b2 = (
        source[0, 3] - target[0, 3],
        source[1, 3] - target[1, 3],
        source[2, 3] - target[2, 3],
    )
    for i in range(3):
        t0, t1, t2 = target[0, i], target[1, i], target[2, i]
        q0 = t0 * source[0, 0] + t1 * source[1, 0] + t2 * source[2, 0]
        q1 = t0 * source[0, 1] + t1 * source[1, 1] + t2 * source[2, 1]
        q2 = t0 * source[0, 2] + t1 * source[1, 2] + t2 * source[2, 2]
        d0, d1 = q0 / lens[0], q1 / lens[1]
        out[i, 0], out[i, 1] = d0, d1
        out[i, 2] = (q2 + (frames.offset - lens[2]) * d0) + (frames.offset - lens[3]) * d1
        out[i, 3] = t0 * b0 + t1 * b1 + t2 * b2


@inlined
def unpack(rows, start, count, frames, frame, part, flat):
    """(5, count) column, row, depth, size and recession in metres, of the points or of one of their
    parts: alike for all views.
    """
    pitch = F(1.0 / (0.5 * (frames.intrinsics[frame, 0] + frames.intrinsics[frame, 1])))
    width = F(frames.width)
    inverse = ONE / width
    depth, cell = rows.depth[start : start + count], rows.cell[start : start + count]
    slant = rows.slant[start : start + count]
    columns, lines, depths, sizes, recedes = flat[0], flat[1], flat[2], flat[3], flat[4]
    for k in range(count):
        at = F(cell[k])
        line = np.floor((at + HALF) * inverse)
        size = depth[k] * pitch
        columns[k], lines[k], depths[k] = at - line * width, line, depth[k]
        sizes[k], recedes[k] = size, (F(slant[k]) * STEP) * size
    if frames.parts > 1:
        right, down, finer = F(part % FINER), F(part // FINER), F(FINER)
        relief = rows.relief[start : start + count]
        for k in range(count):
            nearer = depths[k] * RELIEFS[I64(relief[k, part]) + 128]
            size = nearer * pitch
            columns[k], lines[k] = columns[k] * finer + right, lines[k] * finer + down
            depths[k], sizes[k] = nearer, size
            recedes[k] = (F(slant[k]) * STEP) * size


@inlined
def project(flat, count, views, view, m, out):
    """(5, count) u, v, z and spans of a block's points in one view, by M and b."""
    lens = views.intrinsics[view]
    fx, fy, cx, cy = F(lens[0]), F(lens[1]), F(lens[2]), F(lens[3])
    x0, x1, x2, x3 = m[0, 0], m[0, 1], m[0, 2], m[0, 3]
    y0, y1, y2, y3 = m[1, 0], m[1, 1], m[1, 2], m[1, 3]
    z0, z1, z2, z3 = m[2, 0], m[2, 1], m[2, 2], m[2, 3]
    columns, lines, depths, sizes, recedes = flat[0], flat[1], flat[2], flat[3], flat[4]
    us, vs, zs, spans_u, spans_v = out[0], out[1], out[2], out[3], out[4]
    for k in range(count):
        c, r, d, size = columns[k], lines[k], depths[k], sizes[k]
        dx = (c * x0 + r * x1) + x2
        dy = (c * y0 + r * y1) + y2
        dz = (c * z0 + r * z1) + z2
        x, y, z = d * dx + x3, d * dy + y3, d * dz + z3
        near = ONE / z
        focal_u, focal_v = fx * near, fy * near
        us[k], vs[k], zs[k] = (x * fx) * near + cx, (y * fy) * near + cy, z
        a, b, e = recedes[k] * dx, recedes[k] * dy, recedes[k] * dz
        span_u = size * focal_u + abs((a - (e * x) * near) * focal_u)
        span_v = size * focal_v + abs((b - (e * y) * near) * focal_v)
        spans_u[k] = span_u if span_u < SPAN else SPAN
        spans_v[k] = span_v if span_v < SPAN else SPAN


@inlined
def baseline(m):
    """Metres from a frame's eye to a view's."""
    x, y, z = m[0, 3], m[1, 3], m[2, 3]
    return np.sqrt((x * x + y * y) + z * z)


@inlined
def rank_of(code, baseline_m, z, newest):
    """Smaller is better: a point's quality so far from the eye that saw it, then its frame."""
    lost = (baseline_m / z) * LOSS
    left = I64(code) - I64(lost if lost < MOST_LOSS else MOST_LOSS)
    return (I64(255) - at_least(left, I64(0))) << 32 | newest


@inlined
def at_least(value, least):
    return value if value > least else least


@inlined
def first_cell(u, width):
    return at_least(I32(np.floor(u + (HALF - HALF * width))), I32(0))


@inlined
def last_cell(u, width, last):
    cell = I32(np.floor(u - (HALF - HALF * width)))
    return cell if cell < last else last


@inlined
def settle(local, count, h, w, box):
    """(4, count) first column and row that each patch covers with its rim, and how many, 0 if
    unseen; returns the largest numbers.
    """
    us, vs, zs, spans_u, spans_v = local[0], local[1], local[2], local[3], local[4]
    lefts, tops, columns, lines = box[0], box[1], box[2], box[3]
    end_u, end_v, right, bottom = F(w) + MARGIN, F(h) + MARGIN, I32(w - 1), I32(h - 1)
    most_columns, most_lines = I32(0), I32(0)
    for k in range(count):
        u, v = us[k], vs[k]
        seen = (zs[k] > NEAR) & (u >= -MARGIN) & (u < end_u) & (v >= -MARGIN) & (v < end_v)
        u, v = (u if seen else OUTSIDE), (v if seen else OUTSIDE)
        wide, high = at_least(spans_u[k] * WIDEN, ONE), at_least(spans_v[k] * WIDEN, ONE)
        left, top = first_cell(u, wide), first_cell(v, high)
        num = at_least(I32(last_cell(u, wide, right) - left + I32(1)), I32(0))
        num_lines = at_least(I32(last_cell(v, high, bottom) - top + I32(1)), I32(0))
        lefts[k], tops[k], columns[k], lines[k] = left, top, num, num_lines
        most_columns, most_lines = at_least(num, most_columns), at_least(num_lines, most_lines)
    return most_columns, most_lines


@inlined
def reach(span):
    """Half the width of the surface itself, without its rim."""
    return HALF * at_least(span * TIGHT, ONE)


@inlined
def corner(local, box, count, i, j, base, w, nowhere, cell, key):
    """Of each patch the cell in its line i and column j, and its depth there, rims behind
    everything; a spare cell where it has none.
    """
    us, vs, zs, spans_u, spans_v = local[0], local[1], local[2], local[3], local[4]
    lefts, tops, columns, lines = box[0], box[1], box[2], box[3]
    for k in range(count):
        column, line = I32(lefts[k] + j), I32(tops[k] + i)
        inside = (columns[k] > j) & (lines[k] > i)
        du, dv = us[k] - (F(column) + HALF), vs[k] - (F(line) + HALF)
        half_u, half_v, z = reach(spans_u[k]), reach(spans_v[k]), zs[k]
        tight = (du >= -half_u) & (du < half_u) & (dv >= -half_v) & (dv < half_v)
        key[k] = z if tight else z * LAST
        spare = I32(nowhere + (I32(k) & I32(SPARE - 1)))
        cell[k] = I32(base + line * w + column) if inside else spare


@inlined
def larger(box, count, out):
    """List the patches of more than 2 x 2 cells; returns their number."""
    num = 0
    for k in range(count):
        out[num] = k
        num += (box[2, k] > 2) | (box[3, k] > 2)
    return num


@inlined
def beyond(local, box, large, num_large, i, j, base, w, cell, key, out):
    """The same as `corner` for the few large patches that have such a cell, listed in out."""
    num = 0
    for q in range(num_large):
        k = large[q]
        if box[2, k] > j and box[3, k] > i:
            line, column = box[1, k] + i, box[0, k] + j
            cell[k], key[k] = base + line * w + column, depth_at(local, k, column, line)
            out[num] = k
            num += 1
    return num


@inlined
def depth_at(local, k, column, line):
    """A patch's depth in one cell that it covers, rims behind everything."""
    du, dv = local[0, k] - (F(column) + HALF), local[1, k] - (F(line) + HALF)
    half_u, half_v, z = reach(local[3, k]), reach(local[4, k]), local[2, k]
    tight = du >= -half_u and du < half_u and dv >= -half_v and dv < half_v
    return z if tight else z * LAST


@inlined
def peel(cell, key, who, num, hidden, taken, source):
    """Put out of reach what is no second one: the first one's depths, but for those that another
    frame than `taken` tells, if that is >= 0; and rims.
    """
    for q in range(num):
        k, at = who[q], cell[who[q]]
        second = key[k] > hidden[at] or (taken[at] >= 0 and taken[at] != source)
        key[k] = key[k] if second and key[k] < LAST * NEAR else F(np.inf)


@inlined
def scratch():
    """Room for what a block's points look like in one view."""
    matrix, flat, local = np.empty((3, 4), F), np.empty((5, BLOCK), F), np.empty((5, BLOCK), F)
    return matrix, flat, local, np.empty((4, BLOCK), I32)


@inlined
def look(rows, blocks, frames, views, number, view, unpacked, room):
    """Fill the room with a block, or one part of all its points, in a view; returns what `settle`
    does.
    """
    matrix, flat, local, box = room
    block, part = number // frames.parts, number % frames.parts
    count, frame = blocks.length[block], blocks.frame[block]
    if number != unpacked:
        unpack(rows, blocks.start[block], count, frames, frame, part, flat)
    relate(frames, frame, views, view, matrix)
    project(flat, count, views, view, matrix, local)
    return settle(local, count, views.height, views.width, box)


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
def visible(blocks, frames, views):
    """(p, 2) pairs of a block and a view that may see it; in parts, of the block's number and the
    part as one.
    """
    pairs, parts = np.empty((len(blocks.start) * len(views.pose), 2), I32), frames.parts
    pairs = pairs[: cull(blocks, frames, views, pairs)]
    if parts == 1:
        return pairs
    every = np.empty((len(pairs) * parts, 2), I32)
    for i in range(len(pairs)):
        for part in range(parts):
            every[i * parts + part, 0] = pairs[i, 0] * parts + part
            every[i * parts + part, 1] = pairs[i, 1]
    return every


@compiled
def nearest_depths(rows, blocks, frames, views, pairs, hidden, taken, front):
    """Lower front (t * h * w + SPARE,) to the smallest depth, rims behind everything; of what is
    left beside another surface if its limits and frames are given as `hidden` and `taken`.
    """
    h, w, nowhere = I32(views.height), I32(views.width), I32(len(front) - SPARE)
    cell, key, everyone = np.empty(BLOCK, I32), np.empty(BLOCK, F), np.arange(BLOCK, dtype=I32)
    large, some, room, unpacked = np.empty(BLOCK, I32), np.empty(BLOCK, I32), scratch(), I32(-1)
    _, _, local, box = room
    for number, view in pairs:
        columns, lines = look(rows, blocks, frames, views, number, view, unpacked, room)
        block, base = number // frames.parts, I32(view * h * w)
        count, source, unpacked = blocks.length[block], frames.source[blocks.frame[block]], number
        num_large = larger(box, count, large) if columns > 2 or lines > 2 else 0
        for i in range(lines):
            for j in range(columns):
                who, num = everyone, I64(count)
                if i < 2 and j < 2:
                    corner(local, box, count, I32(i), I32(j), base, w, nowhere, cell, key)
                else:
                    who = some
                    num = beyond(local, box, large, num_large, i, j, base, w, cell, key, some)
                if hidden is not None:
                    peel(cell, key, who, num, hidden, taken, source)
                for q in range(num):
                    k = who[q]
                    nearest = front[cell[k]]
                    front[cell[k]] = key[k] if key[k] < nearest else nearest


@compiled
def limits(front, ratio):
    """(t * h * w + SPARE,) how deep a cell's front surface reaches by the threads' minima (p, ...),
    0 where nothing is; nothing comes up to a spare one.
    """
    limit = front[0].copy()
    for part in range(1, len(front)):
        for at in range(len(limit)):
            limit[at] = min(limit[at], front[part, at])
    for at in range(len(limit) - SPARE):
        limit[at] = (F(0) if limit[at] == np.inf else limit[at]) * ratio
    limit[len(limit) - SPARE :] = np.nan
    return limit


@compiled
def best_points(
    rows, blocks, frames, views, pairs, hidden, taken, limit, rank, distance, winner, place
):
    """Per cell the best point on the front surface, and where it lies; in parts, the number of the
    point's and the part as one.
    """
    h, w, nowhere = I32(views.height), I32(views.width), I32(len(limit) - SPARE)
    cell, key, everyone = np.empty(BLOCK, I32), np.empty(BLOCK, F), np.arange(BLOCK, dtype=I32)
    large, some, room, unpacked = np.empty(BLOCK, I32), np.empty(BLOCK, I32), scratch(), I32(-1)
    near = np.empty(BLOCK, I32)
    matrix, _, local, box = room
    for number, view in pairs:
        columns, lines = look(rows, blocks, frames, views, number, view, unpacked, room)
        block, part, unpacked = number // frames.parts, number % frames.parts, number
        count, base = blocks.length[block], I32(view * h * w)
        start, source = blocks.start[block], frames.source[blocks.frame[block]]
        newest, baseline_m = NO_SOURCE - I64(source), baseline(matrix)
        num_large = larger(box, count, large) if columns > 2 or lines > 2 else 0
        for i in range(lines):
            for j in range(columns):
                who, num = everyone, I64(count)
                if i < 2 and j < 2:
                    corner(local, box, count, I32(i), I32(j), base, w, nowhere, cell, key)
                else:
                    who = some
                    num = beyond(local, box, large, num_large, i, j, base, w, cell, key, some)
                if hidden is not None:
                    peel(cell, key, who, num, hidden, taken, source)
                num_near = 0
                for q in range(num):
                    near[num_near] = who[q]
                    num_near += key[who[q]] <= limit[cell[who[q]]]
                for q in range(num_near):  # not a function: passing arrays costs more than this
                    k, at = near[q], cell[near[q]]
                    mine = rank_of(rows.quality[start + k], baseline_m, local[2, k], newest)
                    best = rank[at]
                    if mine > best:
                        continue
                    du = local[0, k] - (F(box[0, k] + I32(j)) + HALF)
                    dv = local[1, k] - (F(box[1, k] + I32(i)) + HALF)
                    apart, row = du * du + dv * dv, (start + k) * frames.parts + part
                    if mine == best and (
                        apart > distance[at] or (apart == distance[at] and row > winner[at])
                    ):
                        continue
                    rank[at], distance[at], winner[at] = mine, apart, row
                    place[at, 0], place[at, 1], place[at, 2] = local[2, k], du, dv
                    place[at, 3], place[at, 4] = local[3, k], local[4, k]


@compiled
def tents(rows, blocks, frames, views, pairs, limit, rank, total):
    """Fragments (cell, row, weight) of the chosen frames' visible points; adds to total."""
    h, w = I32(views.height), I32(views.width)
    room, unpacked = scratch(), I32(-1)
    matrix, _, local, box = room
    fragments, num = np.empty((max(1024, 2 * len(limit)), 3), np.int32), 0
    for block, view in pairs:  # of whole points
        look(rows, blocks, frames, views, block, view, unpacked, room)
        count, base, unpacked = blocks.length[block], I32(view * h * w), block
        start, newest = blocks.start[block], NO_SOURCE - I64(frames.source[blocks.frame[block]])
        baseline_m = baseline(matrix)
        for k in range(count):
            mine = rank_of(rows.quality[start + k], baseline_m, local[2, k], newest)
            if not chosen(local, box, k, base, w, limit, rank, mine):
                continue
            u, v, z = local[0, k], local[1, k], local[2, k]
            wide, high = at_least(local[3, k], ONE), at_least(local[4, k], ONE)
            left, right = first_cell(u, F(2) * wide), last_cell(u, F(2) * wide, w - 1)
            top, bottom = first_cell(v, F(2) * high), last_cell(v, F(2) * high, h - 1)
            for line in range(top, bottom + 1):
                dv = v - (F(line) + HALF)
                tent_v = max(ONE - abs(dv) / high, F(0))
                for column in range(left, right + 1):
                    cell = base + line * w + column
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
def chosen(local, box, k, base, w, limit, rank, mine):
    """Whether the point is of the best rank on the front surface of any cell that it covers."""
    for line in range(box[1, k], box[1, k] + box[3, k]):
        for column in range(box[0, k], box[0, k] + box[2, k]):
            cell = base + line * w + column
            if mine == rank[cell] and depth_at(local, k, column, line) <= limit[cell]:
                return True
    return False


@compiled
def merge(rank, distance, winner, place):
    """Fold the threads' tables (p, t * h * w) into the first."""
    for part in range(1, len(rank)):
        for cell in range(rank.shape[1]):
            mine, apart = rank[part, cell], distance[part, cell]
            if mine > rank[0, cell] or mine == NOTHING:
                continue
            row, first = winner[part, cell], winner[0, cell]
            if mine < rank[0, cell] or (apart, row) < (distance[0, cell], first):
                rank[0, cell], distance[0, cell] = mine, apart
                winner[0, cell] = row
                place[0, cell] = place[part, cell]


@compiled
def describe(rank, winner, place, limit, parts, numbers, winners, sources, shares):
    """Coverage, quality, depth, offset, span (t, 7, h * w) and winner, source (t * h * w,), and in
    parts which one (t * h * w,).
    """
    size = numbers.shape[2]
    for cell in range(len(rank)):
        view, at = cell // size, cell % size
        if rank[cell] == NOTHING:
            for i in range(7):
                numbers[view, i, at] = F(0)
            winners[cell], sources[cell] = -1, -1
            if parts > 1:
                shares[cell] = 0
            continue
        numbers[view, 0, at] = F(0.5) if limit[cell] >= LAST * NEAR else F(1)
        numbers[view, 1, at] = QUALITIES[I64(255) - (rank[cell] >> 32)]
        for i in range(5):
            numbers[view, 2 + i, at] = place[cell, i]
        winners[cell], sources[cell] = winner[cell] // parts, NO_SOURCE - (rank[cell] & NO_SOURCE)
        if parts > 1:
            shares[cell] = winner[cell] % parts


@inlined
def decode(tokens, rows, out):
    """Tokens of these rows as the bits of float32, from bfloat16's or from int8 and scale; 0 for
    row -1.
    """
    large, small, scale = tokens
    values, channels = out.view(F), out.shape[1]
    for k in range(len(rows)):
        row = rows[k]
        if row < 0:
            for c in range(channels):
                out[k, c] = 0
        elif len(small):
            for c in range(channels):
                values[k, c] = F(small[row, c]) * scale[row]
        else:
            for c in range(channels):
                out[k, c] = np.int32(large[row, c]) << 16


@compiled
def gather(tokens, winner, first, last, out):
    """Tokens of the winners of cells first..last into out (t, c, h * w)."""
    tile = np.empty((TILE, out.shape[1]), np.int32)
    for begin in range(first, last, TILE):
        num = min(TILE, last - begin)
        decode(tokens, winner[begin : begin + num], tile)
        spill(tile, begin, num, out)


@compiled
def order(fragments, begin, out):
    """Place fragments by cell; begin (t * h * w,) is where each cell's go, advanced."""
    for k in range(len(fragments)):
        at = begin[fragments[k, 0]]
        out[at, 0], out[at, 1] = fragments[k, 1], fragments[k, 2]
        begin[fragments[k, 0]] = at + 1


@compiled
def blend(tokens, begin, fragments, total, first, last, out):
    """Weighted tokens of cells first..last, summed in fixed point, into out (t, c, h * w)."""
    channels = out.shape[1]
    tile, sums = np.empty((TILE, channels), np.int32), np.empty(channels, I64)
    token, row = np.empty((1, channels), np.int32), np.empty(1, I64)
    blended, value = tile.view(F), token.view(F)
    for start in range(first, last, TILE):
        num = min(TILE, last - start)
        for cell in range(start, start + num):
            for c in range(channels):
                sums[c] = 0
            for k in range(begin[cell], begin[cell + 1]):
                weight = F(np.float64(fragments[k, 1]) / np.float64(total[cell]))
                row[0] = fragments[k, 0]
                decode(tokens, row, token)
                for c in range(channels):
                    sums[c] += I64(np.rint((value[0, c] * weight) * TOKEN_ONE))
            for c in range(channels):
                blended[cell - start, c] = F(np.float64(sums[c]) / np.float64(TOKEN_ONE))
        spill(tile, start, num, out)


@inlined
def spill(tile, begin, num, out):
    """Write the rows of a tile to `num` cells from `begin`, which may belong to two views."""
    size, bits = out.shape[2], out.view(np.int32)
    turned = 0
    while turned < num:
        view, at = (begin + turned) // size, (begin + turned) % size
        some = min(num - turned, size - at)
        turn(tile[turned : turned + some], view, at, bits)
        turned += some


@inlined
def turn(tile, view, at, out):
    """Write a tile (k, c) to cells at..at + k of a view, a few channels side by side."""
    channels = tile.shape[1]
    whole = channels - channels % 4
    for c in range(0, whole, 4):
        for k in range(len(tile)):
            out[view, c, at + k] = tile[k, c]
            out[view, c + 1, at + k] = tile[k, c + 1]
            out[view, c + 2, at + k] = tile[k, c + 2]
            out[view, c + 3, at + k] = tile[k, c + 3]
    for c in range(whole, channels):
        for k in range(len(tile)):
            out[view, c, at + k] = tile[k, c]


@compiled
def show(
    rows,
    blocks,
    frames,
    views,
    ratio,
    hidden,
    taken,
    tokens,
    numbers,
    winners,
    sources,
    shares,
    shown,
):
    """A whole `nearest` read of one surface on one thread, in one call that holds nobody up;
    returns its limits, which hide it from the next.
    """
    pairs, num_cells = visible(blocks, frames, views), len(winners)
    front = np.full((1, num_cells + SPARE), F(np.inf), F)
    nearest_depths(rows, blocks, frames, views, pairs, hidden, taken, front[0])
    limit = limits(front, ratio)
    rank, distance = np.full(num_cells, NOTHING, I64), np.empty(num_cells, F)
    winner, place = np.empty(num_cells, I64), np.empty((num_cells, 5), F)
    best = (rank, distance, winner, place)
    best_points(rows, blocks, frames, views, pairs, hidden, taken, limit, *best)
    describe(rank, winner, place, limit, frames.parts, numbers, winners, sources, shares)
    if shown.shape[1]:
        gather(tokens, winners, 0, num_cells, shown)
    return limit


@compiled
def judge(rows, blocks, frames, views, pairs, scene, rules):
    """Rows that new views replace, and rows that they see through: (m, 2) row and kind.

    A row is listed once per view and kind; see worker/memory/verdicts.py for the rules.
    """
    h, w = I64(views.height), I64(views.width)
    room, unpacked = scratch(), I32(-1)
    _, _, local, _ = room
    found, num = np.empty((4096, 2), I64), 0
    for block, view in pairs:
        look(rows, blocks, frames, views, block, view, unpacked, room)
        count, frame, start = blocks.length[block], blocks.frame[block], blocks.start[block]
        unpacked = block
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
