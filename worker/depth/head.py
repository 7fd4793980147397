"""Latent depth head: z-depth and its uncertainty from latents, no decoding.

A U-Net over the latent grid whose coarsest level attends to the whole picture: scale comes from the
layout of the room, edges from the cells. Where the memory shows a surface, its depth is given as a
hint, so that new surfaces join old ones without a step and scale does not drift. Of a picture that
was really seen it may be told what a network trained on photographs sees (worker/depth/seen.py).
Trained on the Laplace likelihood of log depth, so that confidence is calibrated by construction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worker.layers import Attention2d, Stack, conv, module_dtype

NEAR_M, FAR_M = 0.1, 100.0
LOG_125 = 0.2231  # log of 1.25


@dataclass(frozen=True)
class DepthConfig:
    channels: int = 16
    widths: tuple[int, int, int] = (64, 128, 256)  # at 1, 1/2 and 1/4 of the latent grid
    num_blocks: int = 1  # residual blocks per level, down and up
    num_layers: int = 4  # attention to the whole picture and a block, at the coarsest level
    sees: tuple[int, ...] = ()  # channels of pictures' features at 1/2 and 1/4; (): it takes none


class DepthHead(nn.Module):
    """(n, c, h, w) latents, (n, 2, h, w) view rays and (n, h, w) z-depth hints, 0 for none; where
    pictures were seen, their features at 1/2 and 1/4 of the grid -> log z-depth and log scale of
    its error, both (n, h, w).
    """

    def __init__(self, cfg: DepthConfig) -> None:
        super().__init__()
        self.cfg = cfg
        fine, mid, coarse = cfg.widths
        self.stem = nn.Sequential(conv(cfg.channels + 4, fine), Stack(fine, cfg.num_blocks))
        self.down_mid = nn.Sequential(
            nn.PixelUnshuffle(2), conv(4 * fine, mid, 1), Stack(mid, cfg.num_blocks)
        )
        self.down_coarse = nn.Sequential(
            nn.PixelUnshuffle(2),
            conv(4 * mid, coarse, 1),
            *(
                layer
                for _ in range(cfg.num_layers)
                for layer in (Attention2d(coarse), Stack(coarse, 1))
            ),
        )
        pairs = zip(cfg.sees, (mid, coarse), strict=False)
        self.seeing = nn.ModuleList([conv(seen, width, 1, gain=0.0) for seen, width in pairs])
        self.up_mid = nn.Sequential(conv(coarse, 4 * mid, 1, gain=0.5), nn.PixelShuffle(2))
        self.blocks_mid = Stack(mid, cfg.num_blocks)
        self.up_fine = nn.Sequential(conv(mid, 4 * fine, 1, gain=0.5), nn.PixelShuffle(2))
        self.out = nn.Sequential(Stack(fine, cfg.num_blocks), nn.SiLU(), conv(fine, 2, gain=0.1))
        with torch.no_grad():
            final: nn.Conv2d = self.out[-1]  # type: ignore[assignment]
            final.bias.copy_(torch.tensor([1.2, -1.0]))  # type: ignore[union-attr]

    def forward(
        self, latents: Tensor, rays: Tensor, hint: Tensor, seen: Sequence[Tensor] = ()
    ) -> tuple[Tensor, Tensor]:
        h, w = latents.shape[-2:]
        known = hint > 0
        planes = torch.stack([torch.where(known, hint, 1.0).log(), known.to(hint.dtype)], dim=1)
        x = torch.cat([latents, rays.to(latents.dtype), planes.to(latents.dtype)], dim=1)
        x = F.pad(x, (0, -w % 4, 0, -h % 4), mode="replicate")
        fine = self.stem(x.contiguous(memory_format=torch.channels_last))
        to_mid, to_coarse = self._told(seen) or (0, 0)
        mid = self.down_mid(fine) + to_mid
        coarse = self.down_coarse[2:](self.down_coarse[:2](mid) + to_coarse)
        mid = self.blocks_mid(mid + self.up_mid(coarse))
        out = self.out(fine + self.up_fine(mid))[..., :h, :w].float()
        return out[:, 0], out[:, 1].clamp(-5, 3)

    def _told(self, seen: Sequence[Tensor]) -> list[Tensor]:
        """What features add at 1/2 and 1/4; without any, as much as features that are all 0."""
        if not seen:
            return [layer.bias[:, None, None] for layer in self.seeing]  # type: ignore[index]
        pairs = zip(self.seeing, seen, strict=True)
        return [layer(part.to(module_dtype(layer))) for layer, part in pairs]


def to_depth(log_depth: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor]:
    """z-depth in metres and confidence in [0, 1]: the modelled probability that depth is right
    within 25 %.
    """
    depth = log_depth.exp().clamp(NEAR_M, FAR_M)
    confidence = 1.0 - torch.exp(-LOG_125 * torch.exp(-log_scale))
    return depth, confidence


def spread_of(confidence: Tensor) -> Tensor:
    """The scale of the error of log depth that such a confidence stands for."""
    doubt = (1 - confidence).clamp(1e-6, 1 - 1e-6)
    return -LOG_125 / doubt.log()
