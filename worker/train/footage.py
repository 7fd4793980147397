"""Walks as the mover and the denoiser train on them, and what their memories are told about depth.

At work a memory is told the true depth, what the depth head makes of single pictures, or what
comparing these makes of that; each has its own errors, so training has all three.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from worker.depth.refine import Refiner, refined
from worker.depth.stereo import sweep_depths
from worker.geometry import enlarged
from worker.train.data import Walks
from worker.train.latents import LatentWalks

EVERY = 3  # frames, as observations often come
TRUST = 0.5  # in the head's depth where pictures are compared, of 1

Source = Literal["true", "head", "compared"]


@dataclass(frozen=True)
class Footage:
    """s walks of t frames."""

    walks: Walks
    latents: LatentWalks
    predicted: Tensor  # (s, t, h, w) float32, z-depth that the head sees in single pictures
    refiner: Refiner | None = None  # None: compared depth stays as the sweeps find it

    def depths(self, scene: int, frames: list[int], source: Source) -> Tensor:
        """(k, h', w') float32 z-depth of one walk's frames, per cell or per part of one, 0 where
        there is none. A frame that has no other to compare it with keeps what the head says.
        """
        if source == "true":
            return self.latents.closer[scene, frames].float()
        if source == "head" or len(frames) < 2:
            return self.predicted[scene, frames]
        index = torch.tensor([scene]), torch.tensor([frames])
        pictures, cameras = self.walks.images(*index)[0], self.walks.cameras(*index)[0]
        prior = self.predicted[scene, frames]
        trust = torch.full_like(prior, TRUST)
        refine = None if self.refiner is None else partial(refined, self.refiner)
        _, _, found = sweep_depths(pictures, cameras, prior, trust, refine=refine)
        still = self.latents.still[scene, frames]
        return found * enlarged(still, (found.shape[1], found.shape[2]))


def drawn_source(head: float, compared: float, generator: torch.Generator) -> Source:
    """These shares of memories are told what is guessed, the others the truth."""
    at = float(torch.rand((), generator=generator))
    return "head" if at < head else "compared" if at < head + compared else "true"
