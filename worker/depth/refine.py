"""Where surfaces end: the depth of the parts of cells, chosen among what lies around them.

A sweep compares windows, so a picture's edges come out where windows lie, and what has no texture
comes out as its neighbours say. The right depth is nearly always near by: every part is offered
what was found for the quarters of cells around it (as PatchMatch passes planes on, Bleyer et al.
2011) and what the sweeps began with. How well each offer explains the other pictures is measured
at that part alone; a network that has seen many edges weighs this against the picture and says
which offer to take.

Axis legend: n pictures, o others of each, k offers, h w cells, y x their parts (FINER h, FINER w).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worker.depth.agreement import MISFIT_SHARE, WORST, comparison
from worker.depth.beside import side_by_side
from worker.depth.stereo import around, witnesses
from worker.geometry import Cameras, pool_depth, sharp_enlarged
from worker.layers import Stack, conv, module_dtype
from worker.placed import FINER

NEAR, FAR = 2, 6  # parts that an offer comes from, in all eight directions and in four
STEPS = [(v, u) for v in (-NEAR, 0, NEAR) for u in (-NEAR, 0, NEAR) if (v, u) != (0, 0)]
STEPS += [(-FAR, 0), (FAR, 0), (0, -FAR), (0, FAR)]
NUM_OFFERS = 2 + len(STEPS)  # what was found here comes first, what that was begun with last
NUM_MEASURED = 3  # of each offer: difference of pictures, of surfaces, share of pictures that see
NUM_PLANES = NUM_OFFERS * (1 + NUM_MEASURED) + 3
MAX_LOG = 1.0  # that an offer differs by, as it is told
SAME = 0.06  # log of offers that are one surface
MAX_SHIFT = 0.05  # log of a depth that no offer has


@dataclass(frozen=True)
class RefinerConfig:
    pixels: int = 12  # numbers of a picture per part
    widths: tuple[int, int, int] = (48, 64, 96)  # at 1, 1/2 and 1/4 of the parts' grid
    num_blocks: int = 1  # residual blocks per level, down and up


class Evidence(NamedTuple):
    """What is told of n pictures."""

    offers: Tensor  # (n, k, y, x) log z-depth
    planes: Tensor  # (n, NUM_PLANES, y, x)


class Refiner(nn.Module):
    """A U-Net over the parts of cells: pictures (n, pixels, y, x) and planes (n, NUM_PLANES, y, x)
    -> for each offer how much speaks for it (n, k, y, x), and a shift of its log (n, y, x).
    """

    def __init__(self, cfg: RefinerConfig) -> None:
        super().__init__()
        self.cfg = cfg
        fine, mid, coarse = cfg.widths
        blocks = cfg.num_blocks
        self.stem = nn.Sequential(conv(cfg.pixels + NUM_PLANES, fine, 1), Stack(fine, blocks))
        self.down_mid = nn.Sequential(
            nn.PixelUnshuffle(2), conv(4 * fine, mid, 1), Stack(mid, blocks)
        )
        self.down_coarse = nn.Sequential(
            nn.PixelUnshuffle(2), conv(4 * mid, coarse, 1), Stack(coarse, 2 * blocks)
        )
        self.up_mid = nn.Sequential(conv(coarse, 4 * mid, 1, gain=0.5), nn.PixelShuffle(2))
        self.blocks_mid = Stack(mid, blocks)
        self.up_fine = nn.Sequential(conv(mid, 4 * fine, 1, gain=0.5), nn.PixelShuffle(2))
        self.out = nn.Sequential(
            Stack(fine, blocks), nn.SiLU(), conv(fine, NUM_OFFERS + 1, gain=0.1)
        )
        with torch.no_grad():
            final: nn.Conv2d = self.out[-1]  # type: ignore[assignment]
            final.bias[0] = 3.0  # type: ignore[index]  # at first what was found here is taken

    def forward(self, pictures: Tensor, planes: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.cat([pictures, planes], dim=1)
        fine = self.stem(x.contiguous(memory_format=torch.channels_last))
        mid = self.down_mid(fine)
        mid = self.blocks_mid(mid + self.up_mid(self.down_coarse(mid)))
        out = self.out(fine + self.up_fine(mid)).float()
        return out[:, :NUM_OFFERS], MAX_SHIFT * out[:, -1].tanh()


@torch.no_grad()
def refined(
    refiner: Refiner,
    pictures: Tensor,
    cameras: Cameras,
    closer: Tensor,
    rough: Tensor,
) -> Tensor:
    """(n, y, x) z-depth in metres, what `evidence` is made of given."""
    told = evidence(pictures, cameras, closer, rough)
    dtype = module_dtype(refiner)
    shown = as_parts(pictures, told.planes)
    logits, shift = refiner(shown.to(dtype), told.planes.to(dtype))
    return chosen(told.offers, logits, shift)


def as_parts(pictures: Tensor, planes: Tensor) -> Tensor:
    """(n, 3, H, W) -> (n, c, y, x): all pixels of each of the parts that planes are of."""
    return F.pixel_unshuffle(pictures, pictures.shape[-1] // planes.shape[-1])


def chosen(offers: Tensor, logits: Tensor, shift: Tensor) -> Tensor:
    """(n, y, x) z-depth: the mean of what speaks for the best offer's surface, never of two."""
    best = offers.gather(1, logits.argmax(1, keepdim=True))
    agreeing = (offers - best).abs() < SAME
    weights = torch.where(agreeing, logits, -torch.inf).softmax(1)
    return ((weights * offers).sum(1) + shift).exp()


def evidence(
    pictures: Tensor,  # (n, 3, H, W) in [-1, 1], n >= 2
    cameras: Cameras,  # (n,)
    closer: Tensor,  # (n, CLOSER h, CLOSER w) z-depth in metres, > 0, by a sweep
    rough: Tensor,  # (n, h, w) what the sweeps that found it began with
) -> Evidence:
    """Of every picture, compared with those around it."""
    h, w = rough.shape[1:]
    size = (FINER * h, FINER * w)
    parts = F.interpolate(pictures, size, mode="area")
    views = cameras.resized(*size)
    agreeing, looking = witnesses(pool_depth(closer, (h, w)), cameras.resized(h, w))
    seen_by = torch.stack([agreeing, looking], dim=1) / (len(pictures) - 1)
    told = F.interpolate(seen_by, size)

    def told_of(one: int) -> tuple[Tensor, Tensor]:
        offers = offered(closer[one], rough[one], size)
        return offers, measured(parts, views, closer, one, offers.exp())

    found = side_by_side(told_of, range(len(parts)), parts.device)
    offers, planes = (torch.stack(part) for part in zip(*found, strict=True))
    apart = (offers[:, 1:] - offers[:, :1]).clamp(-MAX_LOG, MAX_LOG)
    scale = offers[:, :1] - offers[:, :1].flatten(1).median(1).values[:, None, None, None]
    return Evidence(offers, torch.cat([apart, scale, told, planes], dim=1))


def offered(closer: Tensor, rough: Tensor, size: tuple[int, int]) -> Tensor:
    """(k, y, x) log z-depth for each part, from (CLOSER h, CLOSER w) and (h, w) z-depth."""
    found, before = (sharp_enlarged(depth[None], size)[0].log() for depth in (closer, rough))
    around = F.pad(found[None, None], (FAR,) * 4, mode="replicate")[0, 0]
    height, width = size
    others = [around[FAR + v :, FAR + u :][:height, :width] for v, u in STEPS]
    return torch.stack([found, *others, before])


def measured(
    parts: Tensor,  # (n, 3, y, x)
    views: Cameras,  # (n,) of that size
    closer: Tensor,  # (n, CLOSER h, CLOSER w)
    one: int,
    depths: Tensor,  # (k, y, x) that are offered
) -> Tensor:
    """(NUM_MEASURED k + 1, y, x): how each offer agrees with the others, and how far the camera
    has moved for what was found.
    """
    others = around(one, len(parts))
    compared = comparison(parts, views, one, others, depths[0], closer, telling_px=FINER)
    planes = compared.over_others(depths)
    planes[:, 0] /= WORST
    planes[:, 1] /= MISFIT_SHARE
    moved = compared.look.parallax_px(depths[0]).mean(0).clamp(min=0.01).log()
    return torch.cat([planes.flatten(0, 1), moved[None]])
