"""Small grids of random tokens."""

from __future__ import annotations

import torch
from torch import Tensor

GRID, CHANNELS = (16, 24), 4


def tokens(num: int, grid: tuple[int, int] = GRID, seed: int = 0) -> Tensor:
    return torch.randn(num, CHANNELS, *grid, generator=torch.Generator().manual_seed(seed))
