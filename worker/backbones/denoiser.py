"""The denoiser of the mini model: a U-Net over the chunk's frames with attention among all frames
at the coarse levels.

Convolutions at latent resolution repair what moving the tokens did to them (covered cells);
attention among target and preceding frames at 1/2 and 1/4 of it imagines the rest consistently. It
predicts the clean latents as a residual on the readout, so that an untrained network already shows
what the memory holds.

Axis legend: b sessions, f frames (p preceding, then t targets), c channels, h w latent grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from worker.backbones.base import Condition
from worker.backbones.rays import pluecker
from worker.geometry import Cameras, cat_cameras
from worker.layers import Stack, conv

NUM_PLANES = 10  # noise level, coverage, depth, is-target, 6 of the ray


@dataclass(frozen=True)
class DenoiserConfig:
    channels: int = 16
    widths: tuple[int, int, int] = (64, 128, 256)  # at 1, 1/2 and 1/4 of the latent grid
    num_blocks: int = 2  # residual blocks per level, down and up
    num_layers: int = 3  # transformer layers at the coarsest level
    head_channels: int = 32


class Layer(nn.Module):
    """Pre-norm transformer layer over tokens (b, s, d)."""

    def __init__(self, width: int, head_channels: int, ratio: int = 3) -> None:
        super().__init__()
        self.num_heads = width // head_channels
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, ratio * width), nn.GELU(), nn.Linear(ratio * width, width)
        )
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.mlp[2].weight)  # type: ignore[arg-type]

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = rearrange(
            self.qkv(self.norm_attention(tokens)),
            "b s (three a d) -> three b a s d",
            three=3,
            a=self.num_heads,
        )
        mixed = F.scaled_dot_product_attention(q, k, v)
        tokens = tokens + self.out(rearrange(mixed, "b a s d -> b s (a d)"))
        mlp: Tensor = self.mlp(self.norm_mlp(tokens))
        return tokens + mlp


class Denoiser(nn.Module):
    """(noisy latents, condition) -> clean latents."""

    def __init__(self, cfg: DenoiserConfig) -> None:
        super().__init__()
        self.cfg = cfg
        fine, mid, coarse = cfg.widths
        self.stem = nn.Sequential(
            conv(3 * cfg.channels + NUM_PLANES, fine), Stack(fine, cfg.num_blocks)
        )
        self.down_mid = nn.Sequential(
            nn.PixelUnshuffle(2), conv(4 * fine, mid, 1), Stack(mid, cfg.num_blocks)
        )
        self.mix_mid = Layer(mid, cfg.head_channels)
        self.down_coarse = nn.Sequential(nn.PixelUnshuffle(2), conv(4 * mid, coarse, 1))
        self.mix_coarse = nn.Sequential(
            *(Layer(coarse, cfg.head_channels) for _ in range(cfg.num_layers))
        )
        self.up_mid = nn.Sequential(conv(coarse, 4 * mid, 1, gain=0.5), nn.PixelShuffle(2))
        self.blocks_mid = Stack(mid, cfg.num_blocks)
        self.mix_up = Layer(mid, cfg.head_channels)
        self.up_fine = nn.Sequential(conv(mid, 4 * fine, 1, gain=0.5), nn.PixelShuffle(2))
        self.head = nn.Sequential(
            Stack(fine, cfg.num_blocks + 1), nn.SiLU(), conv(fine, cfg.channels, gain=0.1)
        )

    def forward(self, noisy: Tensor, level: Tensor, condition: Condition) -> Tensor:
        """noisy (b, t, c, h, w), level (b, t, h, w) noise standard deviation per cell -> clean
        latents (b, t, c, h, w).
        """
        b, num_targets, _, h, w = noisy.shape
        num_recent = condition.recent.shape[1]
        frames = self._inputs(noisy, level, condition)
        pad_h, pad_w = -h % 4, -w % 4  # two halvings; the border is repeated, then cut off
        x = F.pad(frames.flatten(0, 1), (0, pad_w, 0, pad_h), mode="replicate")
        x = x.contiguous(memory_format=torch.channels_last)
        fine = self.stem(x)
        mid = self._mixed(self.mix_mid, self.down_mid(fine), b)
        coarse = self._mixed(self.mix_coarse, self.down_coarse(mid), b)
        mid = self.blocks_mid(mid + self.up_mid(coarse))
        mid = self._mixed(self.mix_up, mid, b)
        mid, fine = (
            rearrange(level_, "(b f) c h w -> b f c h w", b=b)[:, num_recent:].flatten(0, 1)
            for level_ in (mid, fine)
        )
        out: Tensor = self.head(fine + self.up_fine(mid))[..., :h, :w]
        base = condition.front.tokens
        repair: Tensor = out.unflatten(0, (b, num_targets)).to(base.dtype)
        return base + repair

    @staticmethod
    def _mixed(layer: nn.Module, x: Tensor, b: int) -> Tensor:
        """Run a transformer over all cells of all frames of each session."""
        h = x.shape[-2]
        tokens = layer(rearrange(x, "(b f) c h w -> b (f h w) c", b=b))
        mixed: Tensor = rearrange(tokens, "b (f h w) c -> (b f) c h w", f=len(x) // b, h=h)
        return mixed.contiguous(memory_format=torch.channels_last)

    def _inputs(self, noisy: Tensor, level: Tensor, condition: Condition) -> Tensor:
        """All planes of preceding and target frames: (b, f, 3 c + NUM_PLANES, h, w).

        Each target also sees the latest preceding latent cell by cell: without memory it has little
        else to go on.
        """
        recent = condition.recent
        cameras = joined(condition.recent_cameras, condition.cameras)
        rays = pluecker(cameras, condition.cameras[:, 0]).to(noisy.device)
        plane = recent.new_zeros(*recent.shape[:2], *recent.shape[3:])
        front = condition.front
        depth = torch.where(front.depth > 0, front.depth, 1.0).log()
        latest = recent[:, -1:].expand_as(noisy)
        targets = [noisy, front.tokens, latest, level, front.coverage, depth]
        preceding = [recent, recent, recent, plane, plane + 1, plane]
        kinds = [torch.ones_like(level), plane]
        rows = []
        for (*latents, a, b, c), kind in zip((preceding, targets), kinds[::-1], strict=True):
            rows.append(torch.cat([*latents, torch.stack([a, b, c, kind], dim=2)], dim=2))
        return torch.cat([torch.cat(rows, dim=1), rays], dim=2)


def joined(recent: Cameras, targets: Cameras) -> Cameras:
    """(b, p) and (b, t) cameras -> (b, p + t)."""
    b = targets.shape[0]
    return _transposed(cat_cameras([_transposed(recent), _transposed(targets)])).reshape(b, -1)


def _transposed(cameras: Cameras) -> Cameras:
    return Cameras(
        cameras.intrinsics.transpose(0, 1),
        cameras.world_from_camera.transpose(0, 1),
        cameras.height,
        cameras.width,
    )
