"""How pictures agree, compiled for CPUs: what worker/depth/agreement.py does in plain torch, a row
of pixels at a time, so that nothing in between leaves the cache.

Pictures are (H, W, 4) with a channel to spare, rays turned into the others' frames (o, 3, H, W),
the way there moved (o, 3), and lens (o, 4) what makes positions in [-1, 1] of them; limits (3,) are
those of a difference, of what hides and of a misfit.

Axis legend: o others, s factors, k depths, H W pixels, h w cells.
"""

from __future__ import annotations

import numpy as np

from worker.geometry import NEAR_M
from worker.splat.compiled import compiled, inlined

F, I32 = np.float32, np.int32
NEAR, ZERO, HALF, ONE, TWO = F(NEAR_M), F(0), F(0.5), F(1), F(2)
THIRD = F(1 / 3)
NUM_ROWS = 6  # of numbers, to work with


@compiled
def sweep(costs, shares, depth, factors, misfit_weight, rows, margin, scene):
    """Into costs and shares (o, s, h, w), which are 0: means over cells and `margin` pixels around
    them of what speaks against depth (H, W) times each factor where others see, and of where they
    do; `rows` (h, H) takes the mean along columns.
    """
    others, steps, num_rows, num_columns = costs.shape
    height, width = depth.shape
    tall, size = height // num_rows, width // num_columns
    share, misfit_weight = ONE / F(size + 2 * margin), F(misfit_weight)
    line, work, places = np.empty(width, F), np.empty((NUM_ROWS, width), F), _places(width)
    differences, misfits, seen = np.empty(width, F), np.empty(width, F), np.empty(width, F)
    cost, part = np.empty(num_columns, F), np.empty(num_columns, F)
    for other in range(others):
        for step in range(steps):
            factor = factors[step]
            for y in range(height):
                for x in range(width):
                    line[x] = depth[y, x] * factor
                _agree(differences, misfits, seen, line, other, y, scene, work, places)
                for x in range(width):
                    differences[x] = (differences[x] + misfit_weight * misfits[x]) * seen[x]
                _pool(cost, differences, size, margin, share)
                _pool(part, seen, size, margin, share)
                first = max(0, (y - margin) // tall)
                last = min(num_rows, (y + margin) // tall + 1)
                for row in range(first, last):
                    weight = rows[row, y]
                    for column in range(num_columns):
                        costs[other, step, row, column] += weight * cost[column]
                        shares[other, step, row, column] += weight * part[column]


@compiled
def weigh(out, depths, scene):
    """Into out (k, 3, H, W): at each of k depths (k, H, W) the differences and misfits, each a mean
    over the others that see, and the share of those that do.
    """
    num_depths, height, width = depths.shape
    others = scene[1].shape[0]
    work, places = np.empty((NUM_ROWS, width), F), _places(width)
    differences, misfits, seen = np.empty(width, F), np.empty(width, F), np.empty(width, F)
    for number in range(num_depths):
        for y in range(height):
            apart, behind, looking = out[number, 0, y], out[number, 1, y], out[number, 2, y]
            apart[:], behind[:], looking[:] = ZERO, ZERO, ZERO
            for other in range(others):
                _agree(differences, misfits, seen, depths[number, y], other, y, scene, work, places)
                for x in range(width):
                    apart[x] += differences[x] * seen[x]
                    behind[x] += misfits[x] * seen[x]
                    looking[x] += seen[x]
            for x in range(width):
                count = looking[x] if looking[x] > ONE else ONE
                apart[x], behind[x] = apart[x] / count, behind[x] / count
                looking[x] /= F(others)


@inlined
def _places(width):
    """Of corners in pictures, and of what is known of surfaces."""
    return np.empty((2, width), I32)


@inlined
def _pool(out, line, size, margin, share):
    """Means over `size` pixels and the margin around them; beyond the border lies what is on it."""
    width = len(line)
    for column in range(len(out)):
        total, start = ZERO, column * size
        for x in range(start - margin, start + size + margin):
            total += line[min(max(x, 0), width - 1)]
        out[column] = total * share


@inlined
def _agree(differences, misfits, seen, line, other, y, scene, work, places):
    """Differences, misfits and 1 where the other sees, of row y, at depth `line`."""
    here, there, turned, moved, lens, telling, surfaces, limits = scene
    height, width = here.shape[0], here.shape[1]
    h, w = surfaces.shape[1], surfaces.shape[2]
    wide, high, columns, rows = F(width), F(height), F(w), F(h)
    stride, known_stride = I32(width), I32(w)
    right, down, z, looks, apart, behind = work[0], work[1], work[2], work[3], work[4], work[5]
    corner, place = places[0], places[1]
    x0, x1, x2 = turned[other, 0, y], turned[other, 1, y], turned[other, 2, y]
    m0, m1, m2 = moved[other, 0], moved[other, 1], moved[other, 2]
    fu, fv, cu, cv = lens[other, 0], lens[other, 1], lens[other, 2], lens[other, 3]
    for x in range(width):
        far = m2 + x2[x] * line[x]
        z[x] = far if far > NEAR else NEAR
        near = ONE / z[x]
        u = cu + ((m0 + x0[x] * line[x]) * near) * fu
        v = cv + ((m1 + x1[x] * line[x]) * near) * fv
        beside = abs(u) if abs(u) > abs(v) else abs(v)
        looks[x] = ONE if far > NEAR and beside < ONE else ZERO
        px, py = ((u + ONE) * wide - ONE) * HALF, ((v + ONE) * high - ONE) * HALF
        px, py = px if px > ZERO else ZERO, py if py > ZERO else ZERO
        px, py = px if px < wide - ONE else wide - ONE, py if py < high - ONE else high - ONE
        column, row = np.floor(px), np.floor(py)
        column = column if column < wide - TWO else wide - TWO
        row = row if row < high - TWO else high - TWO
        right[x], down[x] = px - column, py - row
        corner[x] = I32(row) * stride + I32(column)
        su, sv = ((u + ONE) * columns - ONE) * HALF, ((v + ONE) * rows - ONE) * HALF
        su, sv = su if su > ZERO else ZERO, sv if sv > ZERO else ZERO
        su, sv = su if su < columns - ONE else columns - ONE, sv if sv < rows - ONE else rows - ONE
        place[x] = I32(np.rint(sv)) * known_stride + I32(np.rint(su))
    picture, known = there[other].reshape(height * width, 4), surfaces[other].reshape(h * w)
    mine = here[y]
    for x in range(width):
        at = corner[x]
        a, b = picture[at], picture[at + 1]
        c, d = picture[at + width], picture[at + width + 1]
        left, up = ONE - right[x], ONE - down[x]
        wa, wb, wc, wd = left * up, right[x] * up, left * down[x], right[x] * down[x]
        red = a[0] * wa + b[0] * wb + c[0] * wc + d[0] * wd
        green = a[1] * wa + b[1] * wb + c[1] * wc + d[1] * wd
        blue = a[2] * wa + b[2] * wb + c[2] * wc + d[2] * wd
        apart[x] = abs(red - mine[x, 0]) + abs(green - mine[x, 1]) + abs(blue - mine[x, 2])
        behind[x] = known[place[x]]
    tell, worst, hidden, most = telling[other, y], limits[0], limits[1], limits[2]
    for x in range(width):
        difference = apart[x] * THIRD
        farther = (behind[x] / z[x] - ONE) * tell[x]
        differences[x] = difference if difference < worst else worst
        misfits[x] = abs(farther) if abs(farther) < most else most
        seen[x] = looks[x] if farther > -hidden else ZERO
