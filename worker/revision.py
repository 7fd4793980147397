"""Observations without depth, looked at together: what one picture leaves open, later ones tell.

The depth of the latest few is found anew by comparing them (worker/depth/stereo.py), and the points
that the newest of them added are placed anew, in one change of the memory. An observation is so
revised twice, the last time with views from before and after it; then it stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from worker.backbones.base import Backbone
from worker.depth.stereo import sweep_depths
from worker.geometry import cat_cameras
from worker.memory.base import Delta, Memory
from worker.pixels import to_uint8
from worker.world import Sight

NUM_REVISED = 3  # the newest sights


def remember(memory: Memory, backbone: Backbone, sights: Sequence[Sight]) -> Delta:
    """Write the newest of these sights, oldest first, and the ones before it anew."""
    latents = torch.cat([sight.latents for sight in sights])
    cameras = cat_cameras([sight.camera for sight in sights])
    depth, confidence, hidden = (
        torch.cat([getattr(sight.guess, name) for sight in sights])
        for name in ("depth", "confidence", "hidden")
    )
    pictures = backbone.decode(latents.float())
    if len(sights) > 1:
        depth, confidence = sweep_depths(pictures, cameras, depth, confidence)
    newest = slice(-NUM_REVISED, None)
    sources = [sight.source for sight in sights[newest]]
    forgotten = memory.forget(sources[:-1])
    written = memory.write(
        latents[newest],
        depth[newest],
        cameras[newest],
        sources,
        confidence=confidence[newest],
        mask=hidden[newest],
        observed=True,
        images=to_uint8(pictures[newest]),
    )
    removed = torch.cat([forgotten.removed, written.removed]).sort().values
    return replace(written, removed=removed)
