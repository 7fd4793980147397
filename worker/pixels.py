"""Pictures at the edge (uint8, channels last) and inside (float in [-1, 1], channels first)."""

from __future__ import annotations

from torch import Tensor


def to_uint8(pixels: Tensor) -> Tensor:
    """(n, 3, H, W) in [-1, 1] -> (n, H, W, 3) uint8 on the CPU, rounded to the nearest level."""
    levels = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round()
    return levels.byte().permute(0, 2, 3, 1).contiguous().cpu()


def from_uint8(images: Tensor) -> Tensor:
    """(n, H, W, 3) uint8 -> (n, 3, H, W) float32 in [-1, 1]."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1
