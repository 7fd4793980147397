"""Image codec of the mini model: (3, H, W) pixels <-> (16, H/8, W/8) latents, one latent frame per
video frame.

Convolutional and norm-free. Tokens are moved to other cells by the memory and must still decode
there, so the mover (worker/mover.py), which re-samples them, is part of the codec and trained with
it.
Space-to-depth by 4 at the pixel end keeps all convolutions at 1/4 and 1/8 of the resolution, where
they cost 16 times less than at full size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worker.layers import Stack, conv
from worker.memory.base import ReadMode
from worker.mover import Mover
from worker.placed import Placed

STRIDE = 8


@dataclass(frozen=True)
class CodecConfig:
    channels: int = 16  # per latent cell
    width_quarter: int = 64  # feature channels at 1/4 resolution
    width_eighth: int = 128  # and at 1/8
    num_blocks: int = 3  # residual blocks per resolution
    mover_width: int = 128
    mover_blocks: int = 8
    mover_fine: int = 0  # feature channels of its look at quarters of cells; 0: it doesn't look
    mover_fine_blocks: int = 0  # residual blocks there, and at parts of cells


class Codec(nn.Module):
    """Encoder and decoder with the latents' normalisation; latents are about unit variance per
    channel.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, cfg: CodecConfig) -> None:
        super().__init__()
        self.cfg = cfg
        quarter, eighth = cfg.width_quarter, cfg.width_eighth
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(4),
            conv(48, quarter),
            Stack(quarter, cfg.num_blocks - 1),
            nn.PixelUnshuffle(2),
            conv(4 * quarter, eighth),
            Stack(eighth, cfg.num_blocks),
            conv(eighth, cfg.channels),
        )
        self.decoder = nn.Sequential(
            conv(cfg.channels, eighth),
            Stack(eighth, cfg.num_blocks),
            conv(eighth, 4 * quarter),
            nn.PixelShuffle(2),
            Stack(quarter, cfg.num_blocks),
            nn.SiLU(),
            conv(quarter, 48),
            nn.PixelShuffle(4),
        )
        self.mover = Mover(
            cfg.channels, cfg.mover_width, cfg.mover_blocks, cfg.mover_fine, cfg.mover_fine_blocks
        )
        self.register_buffer("shift", torch.zeros(cfg.channels))
        self.register_buffer("scale", torch.ones(cfg.channels))

    @property
    def look(self) -> ReadMode:
        """How memories must be read for the mover."""
        return "fine" if self.cfg.mover_fine else "nearest"

    def encode(self, images: Tensor) -> Tensor:
        """(n, 3, H, W) in [-1, 1], H and W multiples of 8 -> (n, c, h, w) normalised latents."""
        raw: Tensor = self.encoder(images)
        return (raw - self.shift[:, None, None]) / self.scale[:, None, None]

    def decode(self, latents: Tensor) -> Tensor:
        """(n, c, h, w) normalised latents -> (n, 3, H, W), unclamped."""
        raw = latents * self.scale[:, None, None] + self.shift[:, None, None]
        pixels: Tensor = self.decoder(raw)
        return pixels

    def move(self, front: Placed, finer: Placed | None = None) -> Tensor:
        """A `nearest` readout (n, ...), and `witnesses` at FINER times its resolution if the mover
        looks at them, as latents (n, c, h, w), 0 where nothing is known.
        """
        scale, shift = self.scale[:, None, None], self.shift[:, None, None]

        def raw(tokens: Tensor) -> Tensor:
            return tokens * scale + shift

        closer = None if finer is None else finer.with_tokens(raw)
        moved = self.mover(front.with_tokens(raw), closer)
        return torch.where(front.coverage[:, None] > 0, (moved - shift) / scale, 0.0)

    @torch.no_grad()
    def normalise_to(self, latents: Tensor) -> None:
        """Fold the statistics of these latents (n, c, h, w) into the codec, so that its latents
        have zero mean, unit variance.
        """
        mean, std = latents.float().mean((0, 2, 3)), latents.float().std((0, 2, 3))
        self.shift += mean * self.scale
        self.scale *= std


def psnr(prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio in dB per picture of (..., 3, H, W) in [-1, 1]; mask (..., H, W)
    bool restricts the pixels.

    A picture whose mask is empty gives NaN.
    """
    error = F.mse_loss(prediction.clamp(-1, 1), target, reduction="none").mean(-3) / 4
    if mask is None:
        return -10 * torch.log10(error.mean((-2, -1)))
    return -10 * torch.log10((error * mask).sum((-2, -1)) / mask.sum((-2, -1)))
