"""Pictures at the edge (uint8, channels last) and inside (float in [-1, 1], channels first)."""

from __future__ import annotations

import torch
from torch import Tensor


def to_uint8(pixels: Tensor) -> Tensor:
    """(n, 3, H, W) in [-1, 1] -> (n, H, W, 3) uint8 on the CPU."""
    return levels(pixels).cpu()


def levels(pixels: Tensor) -> Tensor:
    """(n, 3, H, W) in [-1, 1] -> (n, H, W, 3) uint8 where they are, rounded to the nearest one."""
    rounded = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round()
    return rounded.byte().permute(0, 2, 3, 1).contiguous()


def cell_colours(image: Tensor, grid: tuple[int, int]) -> Tensor:
    """(H, W, 3) uint8 -> (h, w, 3) uint8, the mean over each cell of the grid; H, W are multiples
    of h, w.
    """
    blocks = image.float().unflatten(1, (grid[1], -1)).unflatten(0, (grid[0], -1))
    mean: Tensor = blocks.mean(dim=(1, 3))
    return mean.round().to(torch.uint8)


def from_uint8(images: Tensor) -> Tensor:
    """(n, H, W, 3) uint8 -> (n, 3, H, W) float32 in [-1, 1]."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1
