"""The mover: re-samples remembered tokens onto the grid of a new camera.

A memory shows each cell the token of a point that lies somewhere in the cell, not at its centre,
and was seen at another scale. Blending neighbouring tokens blurs (a token holds a patch of 8 x 8
pixels, far more detail than bilinear weights between tokens can carry), and taking the nearest one
shifts its patch by up to half a cell. The mover is told where each token lies and re-draws it where
the cell is: convolutions over tokens that are first spread over 3 x 3 phases by a tent of their
offset, so that a filter per phase is one linear layer away.

Axis legend: n views, c channels, h w latent grid.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from worker.layers import Stack, conv

NUM_PHASES = 9
NUM_PLANES = 6  # coverage, depth, offset and span in u and v


class Mover(nn.Module):
    """(tokens as the memory shows them, and where they lie) -> tokens of the cells."""

    def __init__(self, channels: int, width: int, num_blocks: int) -> None:
        super().__init__()
        planes = channels * NUM_PHASES + NUM_PLANES
        self.body = nn.Sequential(
            conv(planes, width),
            Stack(width, num_blocks),
            nn.SiLU(),
            conv(width, channels, gain=0.1),
        )

    def forward(
        self,
        tokens: Tensor,  # (n, c, h, w)
        coverage: Tensor,  # (n, h, w) in [0, 1]
        depth: Tensor,  # (n, h, w) metres, 0 where uncovered
        offset: Tensor,  # (n, 2, h, w) cells
        span: Tensor,  # (n, 2, h, w) cells
    ) -> Tensor:
        """(n, c, h, w): the re-drawn tokens; what uncovered cells get means nothing."""
        known = (coverage > 0).to(tokens.dtype)[:, None]
        scale = torch.where(span > 0, span, 1.0).log()
        distance = torch.where(depth > 0, depth, 1.0).log()
        planes = [coverage[:, None], distance[:, None], offset, scale]
        x = torch.cat([phases(tokens * known, offset), *planes], dim=1)
        x = x.to(tokens.dtype).contiguous(memory_format=torch.channels_last)
        repair: Tensor = self.body(x)
        return tokens + repair.to(tokens.dtype)


def phases(tokens: Tensor, offset: Tensor) -> Tensor:
    """Tokens (n, c, h, w) spread by tents at -1, 0 and 1 cells in u and v: (n, 9 c, h, w)."""
    u, v = (tent(offset[:, axis]) for axis in (0, 1))
    weights = (v[:, :, None] * u[:, None]).flatten(1, 2).to(tokens.dtype)
    return (weights[:, :, None] * tokens[:, None]).flatten(1, 2)


def tent(offset: Tensor) -> Tensor:
    """(n, h, w) -> (n, 3, h, w): linear weights of the knots -1, 0 and 1."""
    near = offset.clamp(-1, 1)
    return torch.stack([(-near).clamp(min=0), 1 - near.abs(), near.clamp(min=0)], dim=1)
