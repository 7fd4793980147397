"""Signed distances: how far a point is from the nearest surface (negative inside an object)."""

from __future__ import annotations

import torch
from torch import Tensor

from worker.scenes.scene import BOX, NOTHING, SPHERE, Scene
from worker.scenes.trace import local_from_world


def clearance(scene: Scene, index: int, points: Tensor) -> Tensor:
    """(n,) float32 metres from points (n, 3) to the nearest surface, negative inside a solid."""
    points = points.float()
    walls = torch.minimum(points - scene.room_low[index], scene.room_high[index] - points).amin(-1)
    used = scene.kind[index] != NOTHING
    if not used.any():
        return walls
    kind, half = scene.kind[index][used], scene.half[index][used]
    offset = points[:, None] - scene.centre[index][used]  # n p 3
    local = (local_from_world(scene.rotation[index][used]) @ offset[..., None])[..., 0]
    sphere = local.norm(dim=-1) - half[:, 0]
    beyond = local.abs() - half
    side = torch.linalg.vector_norm(local[..., ::2], dim=-1) - half[:, 0]
    upright = _outside(torch.stack([side, beyond[..., 1]], -1))
    solid = torch.where(kind == BOX, _outside(beyond), torch.where(kind == SPHERE, sphere, upright))
    return torch.minimum(walls, solid.amin(-1))


def _outside(beyond: Tensor) -> Tensor:
    """Distance to a box from how far a point lies beyond each pair of faces."""
    outside: Tensor = beyond.clamp(min=0).norm(dim=-1) + beyond.amax(-1).clamp(max=0)
    return outside
