"""The mini model at toy size with random weights: the real code in milliseconds."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from worker.backbones.denoiser import Denoiser, DenoiserConfig
from worker.backbones.mini import MiniBackbone, MiniConfig
from worker.codec import Codec, CodecConfig
from worker.depth.head import DepthConfig, DepthHead
from worker.engine import Engine, EngineConfig
from worker.weights import save_module

CHANNELS = 4
HEIGHT, WIDTH = 64, 96
CODEC = CodecConfig(
    CHANNELS, width_quarter=8, width_eighth=16, num_blocks=1, mover_width=16, mover_blocks=1
)
DENOISER = DenoiserConfig(CHANNELS, (8, 16, 16), num_blocks=1, num_layers=1, head_channels=8)
DEPTH = DepthConfig(CHANNELS, (8, 8, 32), num_blocks=1)
CONFIGS: dict[str, type] = {
    "codec": CodecConfig,
    "denoiser": DenoiserConfig,
    "depth": DepthConfig,
}


def randomise(module: nn.Module, scale: float = 0.1) -> nn.Module:
    """Noise on every weight, so that no branch is silent as it is before training."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    return module


def modules() -> tuple[Codec, Denoiser, DepthHead]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        codec, denoiser, head = Codec(CODEC), Denoiser(DENOISER), DepthHead(DEPTH)
    codec.normalise_to(codec.encode(pictures(4)))
    randomise(denoiser)
    randomise(head)
    return codec, denoiser, head


def backbone(num_steps: int = 2, dtype: torch.dtype = torch.float32) -> MiniBackbone:
    return MiniBackbone(*modules(), "tiny@0", MiniConfig(num_steps, dtype))


def engine(deterministic: bool = False) -> Engine:
    cfg = EngineConfig(HEIGHT, WIDTH, deterministic=deterministic)
    return Engine(backbone(), cfg)


def save_weights(folder: Path) -> Path:
    """The three files that `worker.backbones.mini.create` reads, with their cards."""
    for name, module in zip(CONFIGS, modules(), strict=True):
        save_module(module, folder / f"{name}.safetensors", {"stage": name})
    return folder


def pictures(num: int, height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> Tensor:
    """(num, 3, height, width) in [-1, 1]: smooth random colours, as in a picture."""
    generator = torch.Generator().manual_seed(seed)
    coarse = 2 * torch.rand(num, 3, height // 16, width // 16, generator=generator) - 1
    return nn.functional.interpolate(coarse, (height, width), mode="bilinear")
