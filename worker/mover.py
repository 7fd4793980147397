"""The mover: re-samples remembered tokens onto the grid of a new camera.

A memory shows each cell the token of a point that lies somewhere in the cell, not at its centre,
and was seen at another scale. Blending neighbouring tokens blurs (a token holds a patch of 8 x 8
pixels, far more detail than bilinear weights between tokens can carry), and taking the nearest one
shifts its patch by up to half a cell. The mover is told where each token lies and re-draws it where
the cell is: convolutions over tokens that are first spread over 3 x 3 phases by a tent of their
offset, so that a filter per phase is one linear layer away.

One token per cell is not all that the memory knows: of the points that a cell's view could see a
fifth share their cell with another one, and at the edge of a surface the token shows its own old
background over the one that lies behind. So the mover also looks at a readout of twice the
resolution, and at the next surface behind each of its cells. There every part of a token lies where
its own depth puts it, so a linear layer per part draws what of the token that part shows.

Axis legend: n views, c channels, h w latent grid.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from worker.layers import Stack, conv
from worker.placed import FINER, NUM_PARTS, Placed, part_at

NUM_PHASES = 9
NUM_PLANES = 6  # coverage, depth, offset and span in u and v
NUM_OWN_PLANES = 4  # of a part: where it lies in its token and from the cell's centre, in u and v


class Mover(nn.Module):
    """(tokens as the memory shows them, and where they lie) -> tokens of the cells."""

    def __init__(self, channels: int, width: int, num_blocks: int, fine_width: int = 0) -> None:
        """With fine_width > 0 it also looks at a finer readout, which starts as unheard."""
        super().__init__()
        planes = channels * NUM_PHASES + NUM_PLANES
        self.body = nn.Sequential(
            conv(planes, width),
            Stack(width, num_blocks),
            nn.SiLU(),
            conv(width, channels, gain=0.1),
        )
        self.fine = None
        if fine_width:
            self.parts = conv(channels, NUM_PARTS * channels, 1)
            self.fine = nn.Sequential(
                conv(2 * (planes + channels * NUM_PHASES + NUM_OWN_PLANES), fine_width, 1),
                nn.SiLU(),
                conv(fine_width, fine_width),
                nn.SiLU(),
                nn.PixelUnshuffle(FINER),
                conv(FINER**2 * fine_width, width, gain=0.0),
            )

    def forward(self, front: Placed, finer: Placed | None) -> Tensor:
        """(n, c, h, w): the re-drawn tokens; what uncovered cells get means nothing."""
        first, *rest = self.body
        x = first(planes_of(front))
        if self.fine is not None:
            if finer is None or finer.behind is None:
                raise ValueError("this mover looks at a finer readout with what lies behind, too")
            both = [self.planes_of_parts(layer) for layer in (finer, finer.behind)]
            x = x + self.fine(torch.cat(both, dim=1))
        for layer in rest:
            x = layer(x)
        repair: Tensor = x.to(front.tokens.dtype)
        return front.tokens + repair

    def planes_of_parts(self, layer: Placed) -> Tensor:
        """(n, 2 * NUM_PHASES * c + NUM_PLANES + NUM_OWN_PLANES, h, w): the tokens by where their
        middles would be, and what they show of themselves by where that is.
        """
        if layer.within is None:
            raise ValueError("this mover looks at parts of tokens; got a readout of whole ones")
        known = (layer.coverage > 0).to(layer.tokens.dtype)[:, None]
        within = layer.within.to(layer.tokens.dtype) * known
        middle = layer.offset - FINER * within
        whole = replace(layer, offset=middle, span=FINER * layer.span)
        own = phases(self.shown(layer.tokens, part_at(layer.within)) * known, layer.offset)
        x = torch.cat([planes_of(whole), own, within, layer.offset], dim=1).to(layer.tokens.dtype)
        return x.contiguous(memory_format=torch.channels_last)

    def shown(self, tokens: Tensor, part: Tensor) -> Tensor:
        """(n, c, h, w): what these parts (n, h, w) of tokens (n, c, h, w) show."""
        every = self.parts(tokens).unflatten(1, (NUM_PARTS, -1))
        chosen: Tensor = every.gather(1, part[:, None, None].expand_as(every[:, :1]))[:, 0]
        return chosen


def planes_of(layer: Placed) -> Tensor:
    """What one surface (n, ...) is told as: (n, NUM_PHASES * c + NUM_PLANES, h, w)."""
    known = (layer.coverage > 0).to(layer.tokens.dtype)[:, None]
    scale = torch.where(layer.span > 0, layer.span, 1.0).log()
    distance = torch.where(layer.depth > 0, layer.depth, 1.0).log()
    spread = phases(layer.tokens * known, layer.offset)
    planes = [spread, layer.coverage[:, None], distance[:, None], layer.offset, scale]
    x = torch.cat(planes, dim=1).to(layer.tokens.dtype)
    return x.contiguous(memory_format=torch.channels_last)


def phases(tokens: Tensor, offset: Tensor) -> Tensor:
    """Tokens (n, c, h, w) spread by tents at -1, 0 and 1 cells in u and v: (n, 9 c, h, w)."""
    u, v = (tent(offset[:, axis]) for axis in (0, 1))
    weights = (v[:, :, None] * u[:, None]).flatten(1, 2).to(tokens.dtype)
    return (weights[:, :, None] * tokens[:, None]).flatten(1, 2)


def tent(offset: Tensor) -> Tensor:
    """(n, h, w) -> (n, 3, h, w): linear weights of the knots -1, 0 and 1."""
    near = offset.clamp(-1, 1)
    return torch.stack([(-near).clamp(min=0), 1 - near.abs(), near.clamp(min=0)], dim=1)
