"""Walks seen in a mirror, by another camera: left to right, with other exposure, white balance,
gamma and saturation, a part of the frames over-exposed. Twice as many views for the depth head,
which must not tell distance by brightness.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from worker.geometry import Cameras
from worker.train.data import DataConfig, Walks

UNALTERED_SHARE = 0.25
GAMMA = 2.2
EXPOSURE_MEAN, EXPOSURE_SPREAD = 0.1, 0.35  # of the log of the factor on linear light
WHITE_SPREAD, GAMMA_SPREAD, SATURATION_SPREAD = 0.08, 0.15, 0.2  # of logs


@dataclass(frozen=True)
class Mirrored:
    """The same calls as Walks."""

    walks: Walks
    seed: int = 1

    @property
    def cfg(self) -> DataConfig:
        return self.walks.cfg

    def images(self, scenes: Tensor, frames: Tensor) -> Tensor:
        rows = []
        for scene, pictures in zip(scenes, self.walks.images(scenes, frames), strict=True):
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + int(scene))
            rows.append(developed((pictures.flip(-1) + 1) / 2, generator) * 2 - 1)
        return torch.stack(rows)

    def depths(self, scenes: Tensor, frames: Tensor) -> Tensor:
        return self.walks.depths(scenes, frames).flip(-1)

    def motion_masks(self, scenes: Tensor, frames: Tensor) -> Tensor:
        return self.walks.motion_masks(scenes, frames).flip(-1)

    def cameras(self, scenes: Tensor, frames: Tensor) -> Cameras:
        return self.walks.cameras(scenes, frames).mirrored()


def developed(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """(n, 3, H, W) in [0, 1] -> the same as other cameras would have taken it."""
    n = len(pictures)

    def factor(spread: float, channels: int = 1, mean: float = 0.0) -> Tensor:
        normal = torch.randn(n, channels, 1, 1, generator=generator)
        return torch.exp(mean + spread * normal)

    light = pictures.clamp(min=1e-4) ** GAMMA
    light = light * factor(EXPOSURE_SPREAD, mean=EXPOSURE_MEAN) * factor(WHITE_SPREAD, 3)
    taken = (light.clamp(max=1.0) ** (1 / GAMMA)) ** factor(GAMMA_SPREAD)
    unaltered = torch.rand(n, 1, 1, 1, generator=generator) < UNALTERED_SHARE
    taken = torch.where(unaltered, pictures, taken)
    grey = taken.mean(1, keepdim=True)
    return (grey + (taken - grey) * factor(SATURATION_SPREAD)).clamp(0, 1)
