"""The mover: re-samples remembered tokens onto the grid of a new camera.

A memory shows each cell the token of a point that lies somewhere in the cell, not at its centre,
and was seen at another scale. Blending neighbouring tokens blurs (a token holds a patch of 8 x 8
pixels, far more detail than bilinear weights between tokens can carry), and taking the nearest one
shifts its patch by up to half a cell. The mover is told where each token lies and re-draws it where
the cell is: convolutions over tokens that are first spread over 3 x 3 phases by a tent of their
offset, so that a filter per phase is one linear layer away.

One token per cell is not all that the memory knows: of the points that a cell's view could see a
fifth share their cell with another one, and at the edge of a surface the token shows its own old
background over the one that lies behind. So the mover also looks at a readout of four times the
resolution, and in each of its cells at a second frame's word: on the same surface, where two tell
more than one, or else on the next one behind. There every part of a token lies where its own depth
puts it, so a linear layer per part draws what of the token that part shows. On the way to the grid
a look at half of these cells each way tells more of each token: all of it by where its middle would
be, and what the quarter shows that its part lies in.

Axis legend: n views, c channels, h w latent grid.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worker.layers import Stack, conv
from worker.placed import CLOSER, FINER, NUM_PARTS, Placed, middle_of, part_at

NUM_PHASES = 9
NUM_PLANES = 6  # coverage, depth, offset and span in u and v
NUM_OWN_PLANES = 4  # of a part: where it lies in its token and from the cell's centre, in u and v
NUM_SHIFTS = 3  # of what a part shows: as it is, and times how far it lies off in u and in v


class Mover(nn.Module):
    """(tokens as the memory shows them, and where they lie) -> tokens of the cells."""

    def __init__(
        self,
        channels: int,
        width: int,
        num_blocks: int,
        fine_width: int = 0,
        fine_blocks: int = 0,
    ) -> None:
        """With fine_width > 0 it also looks at a finer readout, which starts as unheard, through
        fine_blocks residual blocks at each of its two resolutions.
        """
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
            self.parts = conv(channels, CLOSER**2 * channels, 1)
            self.fine = nn.Sequential(
                conv(2 * (planes + channels * NUM_PHASES + NUM_OWN_PLANES), fine_width, 1),
                nn.SiLU(),
                conv(fine_width, fine_width),
                nn.SiLU(),
                nn.PixelUnshuffle(CLOSER),
                conv(CLOSER**2 * fine_width, width, gain=0.0),
            )
            self.finest_parts = conv(channels, NUM_PARTS * channels, 1)
            finest_width, scale = fine_width // 2, FINER // CLOSER
            self.finest = nn.Sequential(
                conv(2 * (channels * NUM_SHIFTS + NUM_PLANES + 2), finest_width, 1),
                nn.SiLU(),
                conv(finest_width, finest_width),
                nn.SiLU(),
                nn.PixelUnshuffle(scale),
                conv(scale**2 * finest_width, fine_width, gain=0.0),
            )
            self.fine_blocks = Stack(fine_width, fine_blocks)
            self.finest_blocks = Stack(finest_width, fine_blocks)

    def forward(self, front: Placed, finer: Placed | None) -> Tensor:
        """(n, c, h, w): the re-drawn tokens; what uncovered cells get means nothing."""
        first, *rest = self.body
        x = first(as_input(planes_of(front), front))
        if self.fine is not None:
            if finer is None or finer.second is None:
                raise ValueError("this mover looks at a finer readout with a second surface, too")
            x = x + self.looked_closer(finer, finer.second)
        for layer in rest:
            x = layer(x)
        repair: Tensor = x.to(front.tokens.dtype)
        return front.tokens + repair

    def looked_closer(self, *layers: Placed) -> Tensor:
        """(n, width, h, w): what the surfaces of a finer readout tell."""
        assert self.fine is not None
        first, *rest = self.fine
        quarters = [one for layer in layers for one in self.planes_of_quarters(quarters_of(layer))]
        parts = [one for layer in layers for one in self.planes_of_parts(layer)]
        x: Tensor = first(as_input(quarters, layers[0]))
        x = self.fine_blocks(x + self.looked_closest(as_input(parts, layers[0])))
        for layer in rest:
            x = layer(x)
        return x

    def looked_closest(self, parts: Tensor) -> Tensor:
        first, *rest = self.finest
        x: Tensor = self.finest_blocks(first(parts))
        for layer in rest:
            x = layer(x)
        return x

    def planes_of_quarters(self, layer: Placed) -> list[Tensor]:
        """2 * NUM_PHASES * c + NUM_PLANES + NUM_OWN_PLANES planes (n, ..., h, w): the tokens by
        where their middles would be, and what they show of themselves by where that is.
        """
        known, within = known_of(layer), within_of(layer)
        middle = layer.offset - CLOSER * within * known
        whole = replace(layer, offset=middle, span=CLOSER * layer.span)
        own = shown(self.parts, layer.tokens, part_at(within, CLOSER)) * known
        return [*planes_of(whole), phases(own, layer.offset), within * known, layer.offset]

    def planes_of_parts(self, layer: Placed) -> list[Tensor]:
        """NUM_SHIFTS * c + NUM_PLANES + 2 planes (n, ..., h, w): what the tokens' parts show and
        how that would change with where it is, to first order, and where it is.
        """
        known, within = known_of(layer), within_of(layer)
        own = shown(self.finest_parts, layer.tokens, part_at(within)) * known
        shifts = [own * layer.offset[:, axis, None] for axis in (0, 1)]
        return [own, *shifts, *geometry_of(layer), within * known]


def shown(parts: nn.Conv2d, tokens: Tensor, part: Tensor) -> Tensor:
    """(n, c, h, w): what these parts (n, h, w) of tokens (n, c, h, w) show, each by its layer."""
    # To learn how many there are of each a GPU would have to be waited for.
    return (shown_at_once if tokens.is_cuda else shown_in_turn)(parts, tokens, part)


def shown_at_once(parts: nn.Conv2d, tokens: Tensor, part: Tensor) -> Tensor:
    every = parts(tokens).unflatten(1, (-1, tokens.shape[1]))
    chosen: Tensor = every.gather(1, part[:, None, None].expand_as(every[:, :1]))[:, 0]
    return chosen


def shown_in_turn(parts: nn.Conv2d, tokens: Tensor, part: Tensor) -> Tensor:
    """Part by part, so that no cell meets the layers of all others."""
    channels = tokens.shape[1]
    assert parts.bias is not None
    layers = parts.weight.view(-1, channels, channels), parts.bias.view(-1, channels)
    cells, order = tokens.movedim(1, -1), part.flatten().argsort(stable=True)
    count = part.flatten().bincount(minlength=len(layers[0])).tolist()
    groups = cells.flatten(0, 2)[order].split(count)
    drawn = torch.cat([F.linear(*one) for one in zip(groups, *layers, strict=True)])
    return drawn[order.argsort()].view(cells.shape).movedim(-1, 1)


def quarters_of(layer: Placed) -> Placed:
    """A look at half as many cells each way: of 2 x 2 the last one's, its part taken for the
    quarter of the token that it lies in.
    """
    step = FINER // CLOSER
    last = (..., slice(step - 1, None, step), slice(step - 1, None, step))
    part = within_of(layer)[last]
    quarter = middle_of(part_at(part, CLOSER), CLOSER).to(part.dtype)
    aside = 0.5 - 0.5 / step  # of the last one's centre, in the larger cells
    offset = layer.offset[last] / step + aside + CLOSER * (quarter - part)
    coverage = layer.coverage[last]
    offset = torch.where(coverage[:, None] > 0, offset, 0.0)
    span = layer.span[last]  # a quarter has step parts, and a larger cell as many cells
    return Placed(layer.tokens[last], coverage, layer.depth[last], offset, span, quarter)


def planes_of(layer: Placed) -> list[Tensor]:
    """What one surface is told as: NUM_PHASES * c + NUM_PLANES planes (n, ..., h, w)."""
    return [phases(layer.tokens * known_of(layer), layer.offset), *geometry_of(layer)]


def geometry_of(layer: Placed) -> list[Tensor]:
    """NUM_PLANES planes in all."""
    scale = torch.where(layer.span > 0, layer.span, 1.0).log()
    distance = torch.where(layer.depth > 0, layer.depth, 1.0).log()
    return [layer.coverage[:, None], distance[:, None], layer.offset, scale]


def known_of(layer: Placed) -> Tensor:
    """(n, 1, h, w) of 0 and 1."""
    return (layer.coverage > 0).to(layer.tokens.dtype)[:, None]


def within_of(layer: Placed) -> Tensor:
    """(n, 2, h, w); ValueError if tokens are whole."""
    if layer.within is None:
        raise ValueError("this mover looks at parts of tokens; got a readout of whole ones")
    return layer.within.to(layer.tokens.dtype)


def as_input(planes: list[Tensor], like: Placed) -> Tensor:
    """Planes (n, ..., h, w) as one, in the tokens' format."""
    last = [one.to(like.tokens.dtype).movedim(1, -1) for one in planes]
    return torch.cat(last, dim=-1).movedim(-1, 1)  # which is how convolutions like them


def phases(tokens: Tensor, offset: Tensor) -> Tensor:
    """Tokens (n, c, h, w) spread by tents at -1, 0 and 1 cells in u and v: (n, 9 c, h, w)."""
    u, v = (tent(offset[:, axis]) for axis in (0, 1))
    weights = (v[:, :, None] * u[:, None]).flatten(1, 2).to(tokens.dtype)
    return (weights[:, :, None] * tokens[:, None]).flatten(1, 2)


def tent(offset: Tensor) -> Tensor:
    """(n, h, w) -> (n, 3, h, w): linear weights of the knots -1, 0 and 1."""
    near = offset.clamp(-1, 1)
    return torch.stack([(-near).clamp(min=0), 1 - near.abs(), near.clamp(min=0)], dim=1)
