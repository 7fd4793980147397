"""Inverse warping of latents by true geometry: the differentiable, batched stand-in for the memory
in codec training.

For each target cell, its true 3D point is looked up in a context view (bilinear among four tokens)
where that view really saw it. The memory splats forward instead; both move tokens by sub-cell
amounts, which is what a codec must survive.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from worker.geometry import Cameras

DEPTH_TOLERANCE = 0.04


def at_cell_centres(depth: Tensor, stride: int) -> Tensor:
    """(n, H, W) -> (n, H / stride, W / stride): the pixel at each cell's centre."""
    return depth[:, stride // 2 :: stride, stride // 2 :: stride]


def inverse_warp(
    latents: Tensor,  # (n, c, h, w) of the context views
    context_depth: Tensor,  # (n, H, W)
    context: Cameras,  # (n,)
    target_depth: Tensor,  # (n, h, w) at the target's cell centres
    target: Cameras,  # (n,)
) -> tuple[Tensor, Tensor, Tensor]:
    """Latents (n, c, h, w) as the target sees them, visible (n, h, w) bool, and their depth in the
    context view.
    """
    h, w = latents.shape[-2:]
    grid = target.resized(h, w)
    points = grid.rays() * target_depth.double()[..., None]
    moved = context.camera_from_world @ target.world_from_camera
    points = points @ moved[:, None, :3, :3].transpose(-1, -2) + moved[:, None, None, :3, 3]
    z = points[..., 2].clamp(min=1e-3)
    fx, fy, cx, cy = (value[:, None, None] for value in context.resized(h, w).intrinsics.unbind(-1))
    u, v = fx * points[..., 0] / z + cx, fy * points[..., 1] / z + cy
    where = torch.stack([2 * u / w - 1, 2 * v / h - 1], dim=-1).float()
    seen = F.grid_sample(context_depth[:, None], where, mode="nearest", align_corners=False)[:, 0]
    inside = (where.abs() < 1).all(-1) & (points[..., 2] > 0.05)
    visible = inside & ((seen - z).abs() < DEPTH_TOLERANCE * z)
    warped = F.grid_sample(
        latents.float(), where, mode="bilinear", padding_mode="border", align_corners=False
    )
    return warped, visible, z.float()
