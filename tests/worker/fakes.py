"""A backbone of a few lines: a deterministic function of noise, readout, preceding latents and
cameras.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from worker.backbones.base import Condition
from worker.engine import Engine, EngineConfig
from worker.geometry import Cameras

HEIGHT, WIDTH = 32, 64


class FakeBackbone:
    weights = "fake@0"
    channels = 16
    stride = 8

    def encode(self, images: Tensor) -> Tensor:
        return functional.avg_pool2d(images, self.stride).repeat(1, 6, 1, 1)[:, : self.channels]

    def denoise(self, condition: Condition, noise: Tensor) -> Tensor:
        covered = condition.coverage[:, :, None]
        height_m = condition.cameras.world_from_camera[..., 2, 3].float()[..., None, None, None]
        before = condition.recent.mean(dim=1, keepdim=True)
        return covered * condition.tokens + (1 - covered) * (
            0.3 * noise + 0.5 * before + height_m.sin() / 10
        )

    def decode(self, latents: Tensor) -> Tensor:
        return functional.interpolate(latents[:, :3], scale_factor=self.stride)

    def depth(self, latents: Tensor, cameras: Cameras) -> tuple[Tensor, Tensor]:
        return 3 + latents[:, 3].tanh(), torch.full_like(latents[:, 0], 0.9)


def fake_engine(backbone: FakeBackbone | None = None) -> Engine:
    cfg = EngineConfig(height=HEIGHT, width=WIDTH, deterministic=True)
    return Engine(backbone or FakeBackbone(), cfg)
