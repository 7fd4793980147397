"""Measured depth with its holes filled: sky and whatever a sensor does not see.

Cells without a single measured surface take what the depth head makes of the picture, told what was
measured around them. That is worth little against a measurement, which replaces it.

Axis legend: h w the latent grid, H' W' the depth map.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from worker.backbones.base import Backbone
from worker.depth.align import align_depths
from worker.geometry import Cameras, pool_depth

WORTH = 0.05  # confidence of a guess where the head is sure, a measurement's being 1


def filled(
    backbone: Backbone,
    latents: Tensor,  # (1, c, h, w)
    camera: Cameras,  # (1,)
    depth: Tensor,  # (1, H', W') z-depth in metres, 0 or not finite = unknown
) -> tuple[Tensor, Tensor | None]:
    """(1, H', W') z-depth in metres, and confidence (1, h, w) if a hole was filled."""
    grid = (latents.shape[-2], latents.shape[-1])
    depth = depth.to(latents.device).float()
    cells = pool_depth(depth, grid)
    known = cells > 0
    if known.all() or not known.any():
        return depth, None
    guess, confidence = backbone.depth(latents.float(), camera, cells)
    guess = align_depths(guess, cells, known.float())
    holes = torch.where(known, 0.0, guess)[:, None]
    patches = F.interpolate(holes, size=depth.shape[1:], mode="nearest-exact")[:, 0]
    return torch.where(patches > 0, patches, depth), torch.where(known, 1.0, WORTH * confidence)
