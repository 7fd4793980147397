"""How one picture agrees, at some depth, with what others show where they would see it.

Comparing pictures asks this for every factor of a sweep and for every offer of the refiner, and
does little else, so on CPUs compiled kernels answer, several times as fast as plain torch.

Axis legend: n pictures, o others, s factors, k depths, H W pixels, h w cells or what is known of
surfaces.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from worker.depth import kernels
from worker.geometry import NEAR_M, Cameras, Look
from worker.splat.columns import Array

WORST = 0.15  # differences (of 2 in all) count up to here: beyond, something else is seen
HIDDEN = 0.2  # share that another picture's surface is nearer, from which on it hides a place
MISFIT = 0.1  # a difference that counts where another picture's surface lies elsewhere
MISFIT_SHARE = 0.1  # of its depth, from which on it counts in full
MIN_SHARED = 500  # pixels that two pictures both see, to compare their brightness


class Agreement(NamedTuple):
    """(o, H, W) float32 each."""

    difference: Tensor  # of colours, up to WORST
    misfit: Tensor  # share by which another's surface lies elsewhere, up to MISFIT_SHARE
    seen: Tensor  # 1 where the other looks, and knows nothing that hides the place; else 0


@dataclass(frozen=True)
class Comparison:
    """One picture, the others that it is compared with, and what is known of their surfaces."""

    look: Look
    here: Tensor  # (3, H, W)
    there: Tensor  # (o, 3, H, W), as bright as this one
    surfaces: Tensor  # (o, h, w) z-depth in metres
    telling: Tensor  # (o, H, W) in [0, 1]: how much a misfit tells

    def over_cells(
        self,
        depth: Tensor,  # (H, W) z-depth in metres of this picture
        factors: Tensor,  # (s,) that it is taken times
        grid: tuple[int, int],
        margin: int,  # pixels around each cell that count as well
    ) -> tuple[Tensor, Tensor]:
        """(o, s, h, w) each, means over cells: what speaks against this depth where the others
        see, 0 elsewhere, and where they do.
        """
        if depth.is_cuda:
            return self.over_cells_plainly(depth, factors, grid, margin)
        costs, shares = torch.zeros(2, len(self.there), len(factors), *grid)
        rows = means(depth.shape[0], grid[0], margin)
        tried = (depth.contiguous().numpy(), factors.numpy(), MISFIT / MISFIT_SHARE)
        kernels.sweep(costs.numpy(), shares.numpy(), *tried, rows.numpy(), margin, self._scene)
        return costs, shares

    def over_cells_plainly(
        self, depth: Tensor, factors: Tensor, grid: tuple[int, int], margin: int
    ) -> tuple[Tensor, Tensor]:
        """The same in plain torch."""
        rows, columns = (
            means(pixels, cells, margin).to(depth)
            for pixels, cells in zip(depth.shape, grid, strict=True)
        )
        costs, shares = [], []
        for factor in factors:  # one at a time: what is in between stays in the cache
            difference, misfit, seen = self.at(depth * factor)
            against = (difference + MISFIT / MISFIT_SHARE * misfit) * seen
            costs.append(rows @ against @ columns.T)
            shares.append(rows @ seen @ columns.T)
        return torch.stack(costs, dim=1), torch.stack(shares, dim=1)

    def over_others(self, depths: Tensor) -> Tensor:
        """(k, 3, H, W) at each of these z-depths (k, H, W): the differences and misfits, each a
        mean over the others that see, and the share of those that do.
        """
        if depths.is_cuda:
            return self.over_others_plainly(depths)
        found = torch.empty(len(depths), 3, *depths.shape[1:])
        kernels.weigh(found.numpy(), depths.contiguous().numpy(), self._scene)
        return found

    def over_others_plainly(self, depths: Tensor) -> Tensor:
        """The same in plain torch."""
        planes = []
        for depth in depths:
            difference, misfit, seen = self.at(depth)
            count = seen.sum(0).clamp(min=1)
            off = [(one * seen).sum(0) / count for one in (difference, misfit)]
            planes.append(torch.stack([*off, seen.mean(0)]))
        return torch.stack(planes)

    def at(self, depth: Tensor) -> Agreement:
        """At z-depth (H, W), in plain torch."""
        at, z = self.look.at(depth)
        difference = (sampled(self.there, at) - self.here).abs_().mean(1).clamp_(max=WORST)
        apart = farther(self.surfaces, at, z) * self.telling
        seen = (z > NEAR_M) & (at.abs().amax(-1) < 1) & (apart > -HIDDEN)
        return Agreement(difference, apart.abs().clamp(max=MISFIT_SHARE), seen.float())

    @cached_property
    def _scene(self) -> tuple[Array, ...]:
        """All but depths, as the kernels take it."""
        look = self.look
        here, there = (F.pad(one.movedim(-3, -1), (0, 1)) for one in (self.here, self.there))
        lens = torch.cat([look.focal, look.centre], dim=-1)[:, 0, 0]
        limits = torch.tensor([WORST, HIDDEN, MISFIT_SHARE])
        parts = (here, there, look.turned.movedim(-1, 1), look.moved[:, 0, 0], lens)
        known = (self.telling, self.surfaces, limits)
        return tuple(one.contiguous().numpy() for one in (*parts, *known))


def comparison(
    pictures: Tensor,  # (n, 3, H, W)
    views: Cameras,  # (n,) of that size
    one: int,
    others: list[int],  # o of them
    depth: Tensor | None = None,  # (H, W) z-depth in metres of this one
    known: Tensor | None = None,  # (n, h, w) of all
    telling_px: float = 1.0,  # of parallax, from which on a misfit means what it says
) -> Comparison:
    """Nothing known: surfaces say nothing."""
    look, here, there = Look(views, one, others), pictures[one], pictures[others]
    if known is None or depth is None:
        unknown = here.new_ones(len(others), 1, 1)
        return Comparison(look, here, there, unknown, here.new_zeros(len(others), *here.shape[1:]))
    telling = (look.parallax_px(depth) / telling_px).clamp(max=1)
    there = there + brighter(here, there, look, known[one], known[others])
    return Comparison(look, here, there, known[others], telling)


def brighter(
    here: Tensor,  # (3, H, W)
    there: Tensor,  # (o, 3, H, W)
    look: Look,
    depth: Tensor,  # (h, w) what is known of here
    surfaces: Tensor,  # (o, h, w) and of there
) -> Tensor:
    """(o, 3, 1, 1): how much brighter this picture is than each other one, where both see it."""
    at, z = look.at(F.interpolate(depth[None, None], here.shape[-2:])[0, 0])
    seen = (z > NEAR_M) & (at.abs().amax(-1) < 1) & (farther(surfaces, at, z).abs() < HIDDEN)
    apart = (here - sampled(there, at)) * seen[:, None]
    count = seen.sum((1, 2)).clamp(min=MIN_SHARED)
    return (apart.sum((2, 3)) / count[:, None])[..., None, None]


def farther(surfaces: Tensor, at: Tensor, z: Tensor) -> Tensor:
    """(o, H, W): the share by which what others (o, h, w) know to be there lies behind z."""
    return sampled(surfaces[:, None], at, "nearest")[:, 0] / z.clamp(min=NEAR_M) - 1


def sampled(maps: Tensor, at: Tensor, mode: str = "bilinear") -> Tensor:
    return F.grid_sample(maps, at, mode, padding_mode="border", align_corners=False)


def means(num_pixels: int, num_cells: int, margin: int) -> Tensor:
    """(num_cells, num_pixels): what takes means along one side of a picture over cells and so many
    pixels around them; beyond the border lies what is on it. A product with it is faster than
    pooling.
    """
    size = num_pixels // num_cells
    starts = size * torch.arange(num_cells)[:, None] - margin
    window = (starts + torch.arange(size + 2 * margin)).clamp(0, num_pixels - 1)
    share = torch.full(window.shape, 1 / window.shape[1])
    return torch.zeros(num_cells, num_pixels).scatter_add_(1, window, share)
