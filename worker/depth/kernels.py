"""How pictures agree, compiled for CPUs: what worker/depth/agreement.py does in plain torch, in one
pass over a row of pixels at a time, so that nothing in between leaves the cache.

Axis legend: o others, H W pixels, h w what is known of the others' surfaces.
"""

from __future__ import annotations

import numpy as np

from worker.geometry import NEAR_M
from worker.splat.compiled import compiled

F, I32 = np.float32, np.int32
NEAR, ZERO, HALF, ONE, TWO = F(NEAR_M), F(0), F(0.5), F(1), F(2)
THIRD = F(1 / 3)


@compiled
def agree(out, depth, first, last, here, there, turned, moved, lens, telling, surfaces, limits):
    """Into out (3, o, H, W): differences, misfits and 1 where others see, of rows first..last of
    the others' (o * H), at depth (H, W).

    Pictures are (H, W, 4) with a channel to spare, rays turned into the others' frames
    (o, 3, H, W), the way there moved (o, 3), and lens (o, 4) what makes positions in [-1, 1] of
    them; limits (3,) are those of a difference, of what hides and of a misfit.
    """
    height, width = depth.shape
    h, w = surfaces.shape[1], surfaces.shape[2]
    wide, high, columns, rows = F(width), F(height), F(w), F(h)
    stride, known_stride = I32(width), I32(w)
    right, down, z = np.empty(width, F), np.empty(width, F), np.empty(width, F)
    looks, apart, behind = np.empty(width, F), np.empty(width, F), np.empty(width, F)
    corner, place = np.empty(width, I32), np.empty(width, I32)
    for number in range(first, last):
        other, y = number // height, number % height
        x0, x1, x2 = turned[other, 0, y], turned[other, 1, y], turned[other, 2, y]
        m0, m1, m2 = moved[other, 0], moved[other, 1], moved[other, 2]
        fu, fv, cu, cv = lens[other, 0], lens[other, 1], lens[other, 2], lens[other, 3]
        line = depth[y]
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
            su, sv = (
                su if su < columns - ONE else columns - ONE,
                sv if sv < rows - ONE else rows - ONE,
            )
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
        differences, misfits, seen = out[0, other, y], out[1, other, y], out[2, other, y]
        for x in range(width):
            difference = apart[x] * THIRD
            farther = (behind[x] / z[x] - ONE) * tell[x]
            differences[x] = difference if difference < worst else worst
            misfits[x] = abs(farther) if abs(farther) < most else most
            seen[x] = looks[x] if farther > -hidden else ZERO
