"""Observations without depth, looked at together: what one picture leaves open, later ones tell.

The depth of the latest few is found anew by comparing them (worker/depth/stereo.py), and the points
that the newest of them added are placed anew, in one change of the memory. So an observation is
revised twice, the last time with views from before and after it; then it stays.

Axis legend: n sights, h w the latent grid, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from worker.backbones.base import Backbone
from worker.depth.stereo import sweep_depths
from worker.geometry import cat_cameras
from worker.memory.base import Delta, Memory
from worker.pixels import to_uint8
from worker.world import Sight

NUM_REVISED = 3  # the newest sights


@dataclass(frozen=True)
class Views:
    """What sights show, and how deep."""

    pictures: Tensor  # (n, 3, H, W) in [-1, 1], as their latents keep them
    depth: Tensor  # (n, h, w) z-depth in metres, 0 where they contradict each other
    confidence: Tensor  # (n, h, w)


def compared(backbone: Backbone, sights: Sequence[Sight]) -> Views:
    """Of a single sight what was guessed."""
    depth = torch.cat([sight.guess.depth for sight in sights])
    confidence = torch.cat([sight.guess.confidence for sight in sights])
    pictures = backbone.decode(torch.cat([sight.latents for sight in sights]).float())
    if len(sights) > 1:
        cameras = cat_cameras([sight.camera for sight in sights]).to(depth.device)
        depth, confidence = sweep_depths(pictures, cameras, depth, confidence)
    return Views(pictures, depth, confidence)


def place(memory: Memory, sights: Sequence[Sight], views: Views) -> Delta:
    """Write the newest of these sights, oldest first; what all but the last added goes."""
    newest = slice(-NUM_REVISED, None)
    some = sights[newest]
    sources = [sight.source for sight in some]
    forgotten = memory.forget(sources[:-1])
    written = memory.write(
        torch.cat([sight.latents for sight in some]),
        views.depth[newest],
        cat_cameras([sight.camera for sight in some]),
        sources,
        confidence=views.confidence[newest],
        mask=torch.cat([sight.guess.hidden for sight in some]),
        observed=True,
        images=to_uint8(views.pictures[newest]),
    )
    removed = torch.cat([forgotten.removed, written.removed]).sort().values
    return replace(written, removed=removed)
