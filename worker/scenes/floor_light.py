"""The light that reaches each spot of the floor: soft contact shadows, baked once per scene.

Two terms per primitive and grid point: ambient light lost near its footprint, and the lamps'
shadow, a soft blob displaced away from each lamp. Blobs instead of shadow rays: a few milliseconds
per scene and never noisy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from worker.scenes.layout import Draft

GRID = 64


def bake(draft: Draft) -> NDArray[np.float32]:
    """(GRID, GRID) float32 in (0, 1], [z, x] cell centres over the room's floor."""
    at = (np.arange(GRID, dtype=np.float32) + 0.5) / GRID
    size = draft.room_high - draft.room_low
    x = (draft.room_low[0] + at * size[0])[None, :]
    z = (draft.room_low[2] + at * size[2])[:, None]
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
    return np.maximum(light, 0.3).astype(np.float32)
