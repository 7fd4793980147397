"""How one picture agrees, at some depth, with what others show where they would see it.

Comparing pictures asks this for every factor of a sweep and for every offer of the refiner, and
does little else, so on CPUs a compiled kernel answers, several times as fast as plain torch.

Axis legend: n pictures, o others, H W pixels, h w what is known of surfaces.
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
from worker.splat.threads import each, split

WORST = 0.15  # differences (of 2 in all) count up to here: beyond, something else is seen
HIDDEN = 0.2  # share that another picture's surface is nearer, from which on it hides a place
MISFIT_SHARE = 0.1  # of its depth, by which a surface that lies elsewhere is as wrong as can be
MIN_SHARED = 500  # pixels that two pictures both see, to compare their brightness
MIN_ROWS = 96  # of pixels, below which one thread is faster


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

    def at(self, depth: Tensor) -> Agreement:
        """At z-depth (H, W) in metres of this picture."""
        return self.plainly(depth) if depth.is_cuda else self._compiled(depth)

    def plainly(self, depth: Tensor) -> Agreement:
        """The same in plain torch."""
        at, z = self.look.at(depth)
        difference = (sampled(self.there, at) - self.here).abs_().mean(1).clamp_(max=WORST)
        apart = farther(self.surfaces, at, z) * self.telling
        seen = (z > NEAR_M) & (at.abs().amax(-1) < 1) & (apart > -HIDDEN)
        return Agreement(difference, apart.abs().clamp(max=MISFIT_SHARE), seen.float())

    def _compiled(self, depth: Tensor) -> Agreement:
        out, num_rows = torch.empty(3, *self.telling.shape), self.telling[..., 0].numel()
        parts = split(range(num_rows), MIN_ROWS, torch.get_num_threads())
        numbers, metres = out.numpy(), depth.contiguous().numpy()

        def agree(i: int) -> None:
            kernels.agree(numbers, metres, parts[i].start, parts[i].stop, *self._columns)

        each(agree, len(parts))
        return Agreement(*out)

    @cached_property
    def _columns(self) -> tuple[Array, ...]:
        """All but the depth, as the kernel takes it."""
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
    depth: Tensor | None = None,  # (H, W) what is known of this one
    known: Tensor | None = None,  # (n, h, w), and of all
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
