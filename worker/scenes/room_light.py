"""The light that reaches each spot of the room's faces: soft contact shadows, baked once per scene.

Two terms on the floor per primitive and grid point: ambient light lost near its footprint, and the
lamps' shadow, a soft blob displaced away from each lamp; on walls and ceiling the first one alone.
Blobs instead of shadow rays: a few milliseconds per scene and never noisy. What moves casts none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from worker.scenes.draft import Draft

GRID = 64
FLOOR = 3
_WALL_REACH_M = 0.7  # a primitive farther from a wall than this does not darken it
_WALL_SHADE = 0.34

Grid = NDArray[np.float32]


def bake(draft: Draft) -> Grid:
    """(6, GRID, GRID) float32 in (0, 1], cell centres over each face: [z, x] on floor and ceiling,
    [y, z] on the walls x low and x high, [y, x] on z low and z high.
    """
    light = np.ones((6, GRID, GRID), dtype=np.float32)
    light[FLOOR] = _floor(draft)
    for face in (0, 1, 2, 4, 5):
        _darken(draft, face, light[face])
    return np.maximum(light, 0.3)


def _cells(draft: Draft, axis: int) -> Grid:
    at = (np.arange(GRID, dtype=np.float32) + 0.5) / GRID
    low, high = draft.room_low[axis], draft.room_high[axis]
    return np.asarray(low + at * (high - low), dtype=np.float32)


def _floor(draft: Draft) -> Grid:
    x, z = _cells(draft, 0)[None, :], _cells(draft, 2)[:, None]
    light = np.ones((GRID, GRID), dtype=np.float32)
    for kind, centre, half, rotation in zip(
        draft.kind, draft.centre, draft.half, draft.rotation, strict=True
    ):
        gap = -(centre[1] + half[1])  # free height below the primitive
        if gap > 1.2 or (half[1] < 0.03 and gap < 0.05):  # hangs high, or is a rug
            continue
        c, s = np.cos(rotation), np.sin(rotation)
        shift = 0.15 * min(gap + half[1], 1.0)
        for lamp, weight in zip(draft.light, (0.3, 0.2), strict=True):
            away = np.array([centre[0] - lamp[0], centre[2] - lamp[2]])
            away = away / (np.linalg.norm(away) + 1e-6) * shift
            dx, dz = x - centre[0] - away[0], z - centre[2] - away[1]
            lx, lz = np.abs(c * dx - s * dz), np.abs(s * dx + c * dz)
            if kind == 0:
                outside = np.hypot(np.maximum(lx - half[0], 0), np.maximum(lz - half[2], 0))
            else:
                outside = np.maximum(np.hypot(lx, lz) - half[0], 0)
            light *= 1 - weight / (1 + 1.5 * gap) * np.exp(-((outside / (0.22 + 0.3 * gap)) ** 2))
    return light


def _darken(draft: Draft, face: int, light: Grid) -> None:
    """Ambient light lost on one wall, or the ceiling, next to what stands or hangs there."""
    axis = face // 2
    first, second = ((2, 1), (0, 2), (0, 1))[axis]
    a, b = _cells(draft, first), _cells(draft, second)
    wall = (draft.room_high if face % 2 else draft.room_low)[axis]
    for centre, half, rotation in zip(draft.centre, draft.half, draft.rotation, strict=True):
        c, s = abs(np.cos(rotation)), abs(np.sin(rotation))
        reach = (c * half[0] + s * half[2], half[1], s * half[0] + c * half[2])
        gap = max(abs(wall - centre[axis]) - reach[axis], 0.0)
        if gap > _WALL_REACH_M or reach[axis] < 0.035:  # far away, or hangs flat on the wall
            continue
        soft = 0.12 + 0.35 * gap
        near_a = np.maximum(np.abs(a - centre[first]) - reach[first], 0) / soft
        near_b = np.maximum(np.abs(b - centre[second]) - reach[second], 0) / soft
        shade = np.exp(-(near_b**2))[:, None] * np.exp(-(near_a**2))[None, :]
        light *= 1 - _WALL_SHADE / (1 + 4 * gap) * shade.astype(np.float32)
