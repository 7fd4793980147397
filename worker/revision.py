"""Observations without depth, looked at together: what one picture leaves open, later ones tell.

The depth of the latest few is found anew by comparing them (worker/depth/stereo.py), and the points
that the newest of them added are placed anew, in one change of the memory. So an observation is
revised twice, the last time with views from before and after it; then it stays.

Axis legend: n sights, h w the latent grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from worker.backbones.base import Backbone
from worker.depth.stereo import sweep_depths
from worker.geometry import cat_cameras
from worker.memory.base import Delta, Memory
from worker.world import Sight

NUM_REVISED = 3  # the newest sights


def compared(backbone: Backbone, sights: Sequence[Sight]) -> tuple[Tensor, Tensor]:
    """(n, h, w) z-depth in metres, 0 where their pictures contradict each other, and confidence; of
    a single sight what was guessed.
    """
    depth = torch.cat([sight.guess.depth for sight in sights])
    confidence = torch.cat([sight.guess.confidence for sight in sights])
    if len(sights) == 1:
        return depth, confidence
    pictures = backbone.decode(torch.cat([sight.latents for sight in sights]).float())
    cameras = cat_cameras([sight.camera for sight in sights]).to(depth.device)
    return sweep_depths(pictures, cameras, depth, confidence)


def place(
    memory: Memory,
    sights: Sequence[Sight],  # n
    depth: Tensor,  # (n, h, w)
    confidence: Tensor,  # (n, h, w)
) -> Delta:
    """Write the newest of these sights, oldest first; what all but the last added goes."""
    newest = slice(-NUM_REVISED, None)
    some = sights[newest]
    sources = [sight.source for sight in some]
    forgotten = memory.forget(sources[:-1])
    written = memory.write(
        torch.cat([sight.latents for sight in some]),
        depth[newest],
        cat_cameras([sight.camera for sight in some]),
        sources,
        confidence=confidence[newest],
        mask=torch.cat([sight.guess.hidden for sight in some]),
        observed=True,
    )
    removed = torch.cat([forgotten.removed, written.removed]).sort().values
    return replace(written, removed=removed)
