"""The number format that networks run in: bfloat16 on a GPU and on a CPU that is faster in it, else
float32.

What a CPU says of itself does not tell: convolutions take eight times as long as in float32 on one
that has AVX2 alone, and twice as long on an Intel with AVX-512 BF16 whose AMX a virtual machine
hides, but half as long on an AMD with the same instructions (docs/log.md, 2026-11-29 and 30). So
both are timed once.
"""

from __future__ import annotations

import time
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

WORTH_ROUNDING = 1.25  # bfloat16 must be so many times as fast; where we looked 0.1, 0.5 or over 2
CHANNELS, GRID = 64, (48, 80)  # of the convolution that is timed: the decoder's at 320 x 192
ROUNDS = 5  # of which the quickest counts, as other work only makes slower


def fast_dtype(device: str) -> torch.dtype:
    """Of the two the one that is faster there."""
    if torch.device(device).type != "cpu":
        return torch.bfloat16
    return fast_on_cpu()


@cache
def fast_on_cpu() -> torch.dtype:
    both = {dtype: operands(dtype) for dtype in (torch.float32, torch.bfloat16)}
    seconds = {dtype: min(duration(*one) for _ in range(ROUNDS)) for dtype, one in both.items()}
    is_worth_it = seconds[torch.float32] > WORTH_ROUNDING * seconds[torch.bfloat16]
    return torch.bfloat16 if is_worth_it else torch.float32


def operands(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A picture's features (1, c, h, w) and a layer's filters (c, c, 3, 3)."""
    last = torch.channels_last
    picture, filters = torch.ones(1, CHANNELS, *GRID), torch.ones(CHANNELS, CHANNELS, 3, 3)
    return picture.to(dtype, memory_format=last), filters.to(dtype, memory_format=last)


@torch.inference_mode()
def duration(picture: Tensor, filters: Tensor) -> float:
    """Seconds that one convolution takes."""
    started = time.perf_counter()
    F.conv2d(picture, filters, padding=1)
    return time.perf_counter() - started


def autocast(device: str, dtype: torch.dtype | None = None) -> torch.autocast:
    """Operations in this format, or in the device's fast one; nothing is cast for float32."""
    dtype = dtype or fast_dtype(device)
    return torch.autocast(torch.device(device).type, dtype, dtype != torch.float32)
