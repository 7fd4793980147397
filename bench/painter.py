"""What the latent memory is measured against: the sort-by-depth-and-overwrite painter.

The public code's way of showing points: transform all of them, keep those in the picture, sort by
depth, gather their float32 tokens in that order and let later writes win. It is a race on several
threads (the painter's winners are undefined there); only its time counts here.

Axis legend: n points, C channels, h w the latent grid.
"""

from __future__ import annotations

import torch
from torch import Tensor

from worker.geometry import Cameras


def paint(positions: Tensor, tokens: Tensor, view: Cameras) -> Tensor:
    """(C, h, w) float32 of positions (n, 3) and tokens (n, C), both float32, in one camera."""
    matrix = view.camera_from_world[0].float()
    fx, fy, cx, cy = view.intrinsics[0].float()
    local = positions @ matrix[:3, :3].T + matrix[:3, 3]
    z = local[:, 2]
    column = (local[:, 0] * fx / z + cx).round().long()
    row = (local[:, 1] * fy / z + cy).round().long()
    inside = (z > 0) & (column >= 0) & (column < view.width) & (row >= 0) & (row < view.height)
    z, cell, shown = z[inside], (row * view.width + column)[inside], tokens[inside]
    order = z.argsort(descending=True)
    picture = torch.zeros(view.height * view.width, tokens.shape[1])
    depth = torch.full((len(picture),), torch.inf)
    depth[cell[order]] = z[order]
    picture[cell[order]] = shown[order]
    return picture.T.reshape(-1, view.height, view.width)
