"""Signed distances: how far a point is from the nearest surface (negative inside an object)."""

from __future__ import annotations

import torch
from torch import Tensor

from worker.scenes.scene import BOX, NOTHING, SPHERE, Scene


def clearance(scene: Scene, index: int, points: Tensor) -> Tensor:
    """(n,) float32 metres from points (n, 3) to the nearest surface, negative inside a solid."""
    points = points.float()
    walls = torch.minimum(points - scene.room_low[index], scene.room_high[index] - points).amin(-1)
    used = scene.kind[index] != NOTHING
    if not used.any():
        return walls
    kind, (hx, hy, hz) = scene.kind[index][used], scene.half[index][used].unbind(-1)
    centre, angle = scene.centre[index][used], scene.rotation[index][used]
    x, y, z = (points[:, k, None] - centre[:, k] for k in range(3))  # n p
    x, z = angle.cos() * x - angle.sin() * z, angle.sin() * x + angle.cos() * z
    flat = x * x + z * z
    above = y.abs() - hy
    box = _outside(torch.hypot((x.abs() - hx).clamp(min=0), (z.abs() - hz).clamp(min=0)), above)
    box = torch.where(box > 0, box, torch.maximum(torch.maximum(x.abs() - hx, z.abs() - hz), above))
    side = flat.sqrt() - hx
    upright = torch.where(
        (side > 0) | (above > 0), _outside(side, above), torch.maximum(side, above)
    )
    sphere = (flat + y * y).sqrt() - hx
    solid = torch.where(kind == BOX, box, torch.where(kind == SPHERE, sphere, upright))
    return torch.minimum(walls, solid.amin(-1))


def _outside(side: Tensor, above: Tensor) -> Tensor:
    """Distance to an upright shape from how far a point lies beyond its side and its caps."""
    return torch.hypot(side.clamp(min=0), above.clamp(min=0))
