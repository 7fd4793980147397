"""The few layers that our networks share: norm-free residual convolutions, 2D attention.

Norm-free because normalisation over a latent grid couples every cell to the whole picture, and
tokens that are moved to another picture would then mean something else there. Residual branches
start at zero, so that depth costs nothing at the start.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F


def conv(channels_in: int, channels_out: int, kernel: int = 3, gain: float = 1.0) -> nn.Conv2d:
    """A same-size convolution whose weights start at gain / sqrt(fan in) and whose bias starts at
    zero.
    """
    layer = nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2)
    nn.init.normal_(layer.weight, std=gain * (channels_in * kernel**2) ** -0.5)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


class ResidualBlock(nn.Module):
    """x + conv(silu(conv(silu(x)))): (n, c, h, w) -> the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = conv(channels, channels, gain=1.4)
        self.second = conv(channels, channels, gain=0.1)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.first(F.silu(x))
        change: Tensor = self.second(F.silu(hidden))
        return x + change


class Attention2d(nn.Module):
    """Self-attention among all cells of each picture, with a residual: (n, c, h, w) -> the same
    shape.
    """

    def __init__(self, channels: int, head_channels: int = 32) -> None:
        super().__init__()
        self.num_heads = channels // head_channels
        self.norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor) -> Tensor:
        h = x.shape[-2]
        cells = rearrange(x, "n c h w -> n (h w) c")
        q, k, v = rearrange(
            self.qkv(self.norm(cells)),
            "n s (three a d) -> three n a s d",
            three=3,
            a=self.num_heads,
        )
        mixed = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.out(rearrange(mixed, "n a s d -> n s (a d)"))
        return x + rearrange(out, "n (h w) c -> n c h w", h=h)


class Stack(nn.Sequential):
    """Residual blocks in a row."""

    def __init__(self, channels: int, num_blocks: int) -> None:
        super().__init__(*(ResidualBlock(channels) for _ in range(num_blocks)))


M = TypeVar("M", bound=nn.Module)


def channels_last(module: M) -> M:
    """The module with its convolutions' weights as the CPU and tensor cores like them."""
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def module_dtype(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype
