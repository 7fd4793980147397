"""Motion head: which cells of some views show a thing that moves, told by comparing the views.

Each view's pixels are looked up where the others saw their points, as if the world were still: what
stands still looks the same there and lies as far away; what moved shows something else, or a depth
that does not fit. A thing is told by all views at once, those taken later as well, and to what
parts of it that difference belongs (little changes within a plain surface) a small U-Net decides,
which also sees the picture itself.

Pictures at half their size, compared at a quarter, for a decision per cell at an eighth.

Axis legend: n views, m others of each, h w latent grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worker.geometry import NEAR_M, Cameras, Look
from worker.layers import Stack, conv

SKY_M = 100.0  # where there is no depth, only the direction counts
MAX_RATIO_LOG = 0.5
LEAST = -0.3  # just below what a SiLU gives
NUM_PLANES = 3  # of a comparison, besides what the views look like: two depths, and who sees


@dataclass(frozen=True)
class MotionConfig:
    look: int = 16  # feature channels that are compared, besides the colours
    pair: int = 32  # of a comparison of two views
    widths: tuple[int, int, int] = (48, 96, 128)  # at 2, 1 and 1/2 times the latent grid
    num_blocks: int = 2


class MotionHead(nn.Module):
    """Views -> (n, h, w) logits of "something here moves"."""

    def __init__(self, cfg: MotionConfig) -> None:
        super().__init__()
        self.cfg = cfg
        fine, mid, coarse = cfg.widths
        seen = cfg.look + 3
        self.look = nn.Sequential(
            nn.PixelUnshuffle(2), conv(12, cfg.look), nn.SiLU(), conv(cfg.look, cfg.look)
        )
        self.compare = nn.Sequential(
            conv(2 * seen + NUM_PLANES, cfg.pair), nn.SiLU(), conv(cfg.pair, cfg.pair), nn.SiLU()
        )
        self.stem = nn.Sequential(conv(seen + 1 + 2 * cfg.pair + 1, fine), Stack(fine, 1))
        self.down_mid = nn.Sequential(
            nn.PixelUnshuffle(2), conv(4 * fine, mid, 1), Stack(mid, cfg.num_blocks)
        )
        self.coarse = nn.Sequential(
            nn.PixelUnshuffle(2),
            conv(4 * mid, coarse, 1),
            Stack(coarse, cfg.num_blocks),
            conv(coarse, 4 * mid, 1, gain=0.5),
            nn.PixelShuffle(2),
        )
        self.out = nn.Sequential(Stack(mid, cfg.num_blocks), nn.SiLU(), conv(mid, 1, gain=0.1))
        with torch.no_grad():
            final: nn.Conv2d = self.out[-1]  # type: ignore[assignment]
            final.bias.fill_(-2.0)  # type: ignore[union-attr]

    def forward(
        self,
        pictures: Tensor,  # (n, 3, 4 h, 4 w) in [-1, 1]
        depth: Tensor,  # (n, 2 h, 2 w) z-depth in metres, 0 where unknown
        cameras: Cameras,  # (n,) of any size
        others: Tensor,  # (n, m) int64: the views each is compared with
        known: Tensor,  # (n, m) bool: False where there is none
    ) -> Tensor:
        colours = F.avg_pool2d(pictures, 2)
        seen = torch.cat([self.look(pictures), colours.to(pictures.dtype)], dim=1)
        at, z = seen_by(depth, cameras.to(depth.device).resized(*depth.shape[1:]), others)
        planes = compared(seen, depth, others, at, z, known)
        compared_with = self.compare(planes.flatten(0, 1)).unflatten(0, others.shape)
        weight = known[..., None, None, None].to(seen.dtype)
        total = weight.sum(1)
        mean = (compared_with * weight).sum(1) / total.clamp(min=1)
        nothing = torch.full_like(mean, LEAST)[:, None]
        most = torch.cat([nothing, torch.where(weight > 0, compared_with, LEAST)], dim=1).amax(1)
        far = torch.where(depth > 0, depth, SKY_M).clamp(min=NEAR_M).log()[:, None].to(seen.dtype)
        any_known = (total > 0).to(seen.dtype).expand_as(far)
        x = self.stem(_channels_last(torch.cat([seen, far, mean, most, any_known], dim=1)))
        x = self.down_mid(x)
        h, w = x.shape[-2:]
        padded = F.pad(x, (0, w % 2, 0, h % 2), mode="replicate")
        x = x + self.coarse(padded)[..., :h, :w]
        logits: Tensor = self.out(x)[:, 0].float()
        return logits


def all_others(n: int) -> Tensor:
    """(n, n - 1) int64: for each of n views all others."""
    index = torch.arange(n)
    return index.expand(n, n)[index[:, None] != index].view(n, n - 1)


def seen_by(depth: Tensor, views: Cameras, others: Tensor) -> tuple[Tensor, Tensor]:
    """Where the others (n, m) see what lies at depth (n, H, W) in each of n views of that size:
    positions (n, m, H, W, 2), in [-1, 1] within their pictures, and z-depths (n, m, H, W).
    """
    far = torch.where(depth > 0, depth, SKY_M)
    rows = others.tolist()
    at, z = zip(*(Look(views, i, row).at(far[i]) for i, row in enumerate(rows)), strict=True)
    return torch.stack(at), torch.stack(z)


def compared(
    seen: Tensor,  # (n, c, H, W) what the views look like
    depth: Tensor,  # (n, H, W)
    others: Tensor,  # (n, m)
    at: Tensor,  # (n, m, H, W, 2)
    z: Tensor,  # (n, m, H, W)
    known: Tensor,  # (n, m)
) -> Tensor:
    """(n, m, 2 c + NUM_PLANES, H, W): each view beside what each other shows in its place."""
    index, grid = others.flatten(), at.flatten(0, 1)
    shown = F.grid_sample(
        seen[index].float(), grid, padding_mode="border", align_corners=False
    ).unflatten(0, others.shape)
    theirs = F.grid_sample(depth[index][:, None], grid, mode="nearest", align_corners=False)
    theirs = theirs[:, 0].unflatten(0, others.shape)
    inside = (z > NEAR_M) & (at.abs() < 1).all(-1) & known[..., None, None]
    measured = inside & (theirs > 0) & (depth > 0)[:, None]
    ratio = (z.clamp(min=NEAR_M) / theirs.clamp(min=NEAR_M)).log()
    ratio = torch.where(measured, ratio.clamp(-MAX_RATIO_LOG, MAX_RATIO_LOG), 0.0)
    own = seen[:, None].expand(-1, others.shape[1], -1, -1, -1)
    change = torch.where(inside[:, :, None], shown.to(seen.dtype) - own, 0.0)
    planes = torch.stack([ratio, measured.float(), inside.float()], dim=2).to(seen.dtype)
    return torch.cat([own, change.to(seen.dtype), planes], dim=2)


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)
