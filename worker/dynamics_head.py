"""Motion head: which cells of a view show something that moves, from latents alone.

Evidence, laid side by side per cell: the view's latents; how they differ from the preceding view's
latents, brought here as if the world were still (each cell's point is looked up where the preceding
camera saw it); how they differ from what the memory shows; and where measured and remembered depth
disagree. A still thing explains itself in one of the two, unless it was hidden before: telling that
from motion is what the network, a small U-Net over the grid, is for.

Axis legend: n views, c channels, h w latent grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worker.geometry import Cameras
from worker.layers import Stack, conv

NUM_SCALARS = 7
SKY_M = 100.0  # where there is no depth, only the direction counts
NEAR_M = 0.05
MAX_RATIO_LOG = 1.0


@dataclass(frozen=True)
class MotionConfig:
    channels: int = 16
    widths: tuple[int, int] = (32, 64)
    num_blocks: int = 2


class MotionHead(nn.Module):
    """(n, 3c + 7, h, w) evidence -> (n, h, w) logits of "something here moves"."""

    def __init__(self, cfg: MotionConfig) -> None:
        super().__init__()
        self.cfg = cfg
        fine, coarse = cfg.widths
        channels = 3 * cfg.channels + NUM_SCALARS
        self.stem = nn.Sequential(conv(channels, fine), Stack(fine, cfg.num_blocks))
        self.down = nn.Sequential(nn.PixelUnshuffle(2), conv(4 * fine, coarse, 1))
        self.blocks = Stack(coarse, cfg.num_blocks)
        self.deeper = nn.Sequential(
            nn.PixelUnshuffle(2),
            conv(4 * coarse, coarse, 1),
            Stack(coarse, cfg.num_blocks),
            conv(coarse, 4 * coarse, 1, gain=0.5),
            nn.PixelShuffle(2),
        )
        self.up = nn.Sequential(conv(coarse, 4 * fine, 1, gain=0.5), nn.PixelShuffle(2))
        self.out = nn.Sequential(Stack(fine, cfg.num_blocks), nn.SiLU(), conv(fine, 1, gain=0.1))
        with torch.no_grad():
            final: nn.Conv2d = self.out[-1]  # type: ignore[assignment]
            final.bias.fill_(-2.0)  # type: ignore[union-attr]

    def forward(self, evidence: Tensor) -> Tensor:
        h, w = evidence.shape[-2:]
        x = F.pad(evidence, (0, -w % 4, 0, -h % 4), mode="replicate")
        fine = self.stem(x.contiguous(memory_format=torch.channels_last))
        coarse = self.blocks(self.down(fine))
        coarse = coarse + self.deeper(coarse)
        logits: Tensor = self.out(fine + self.up(coarse))[:, 0, :h, :w].float()
        return logits


@dataclass(frozen=True)
class Before:
    """The view that precedes each of n views; `known` is False where there was none."""

    latents: Tensor  # (n, c, h, w)
    cameras: Cameras  # (n,) at grid size
    known: Tensor  # (n,) bool


def evidence(
    latents: Tensor,  # (n, c, h, w)
    depth: Tensor,  # (n, h, w) z-depth in metres, 0 where unknown
    cameras: Cameras,  # (n,) at grid size
    before: Before,
    tokens: Tensor,  # (n, c, h, w) of the memory's readout
    coverage: Tensor,  # (n, h, w) of the readout
    remembered: Tensor,  # (n, h, w) z-depth of the readout, 0 where uncovered
) -> Tensor:
    """(n, 3c + 7, h, w) float32, the input of MotionHead."""
    moved, seen = looked_up(before, depth, cameras)
    seen = seen & before.known[:, None, None]
    covered = (coverage > 0) & (remembered > 0)
    change = torch.where(seen[:, None], latents - moved, 0.0)
    surprise = torch.where(covered[:, None], latents - tokens, 0.0)
    has_depth = depth > 0
    ratio = torch.log(depth.clamp(min=NEAR_M) / remembered.clamp(min=NEAR_M))
    ratio = torch.where(covered & has_depth, ratio.clamp(-MAX_RATIO_LOG, MAX_RATIO_LOG), 0.0)
    scalars = [
        seen.float(),
        coverage,
        has_depth.float(),
        torch.where(has_depth, depth.clamp(min=NEAR_M).log(), 0.0),
        ratio,
        change.square().mean(1).sqrt(),
        surprise.square().mean(1).sqrt(),
    ]
    return torch.cat([latents, change, surprise, torch.stack(scalars, 1)], 1)


def looked_up(before: Before, depth: Tensor, cameras: Cameras) -> tuple[Tensor, Tensor]:
    """What the preceding view showed at each cell's point: latents (n, c, h, w), and whether it lay
    in that view at all (n, h, w).
    """
    h, w = depth.shape[-2:]
    rays = cameras.rays()
    points = rays * torch.where(depth > 0, depth, SKY_M)[..., None]
    there = before.cameras.camera_from_world @ cameras.world_from_camera
    points = torch.einsum("nij,nhwj->nhwi", there[:, :3, :3], points)
    points = points + there[:, None, None, :3, 3]
    z = points[..., 2].clamp(min=NEAR_M)
    fx, fy, cx, cy = (value[:, None, None] for value in before.cameras.intrinsics.unbind(-1))
    u, v = fx * points[..., 0] / z + cx, fy * points[..., 1] / z + cy
    inside = (points[..., 2] > NEAR_M) & (u >= 0) & (u <= w) & (v >= 0) & (v <= h)
    grid = torch.stack([2 * u / w - 1, 2 * v / h - 1], -1).float()
    latents = F.grid_sample(
        before.latents.float(), grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    return latents, inside
