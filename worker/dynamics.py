"""The dynamics filter: what moves is kept out of the static memory.

An observation is compared with the latest ones before it (worker/dynamics_head.py). What moves in
it is not written; what moves in those before it, as only now can be told, is taken out again. A
client's mask always counts. A single picture says nothing of motion, so nothing of it is kept out
until there is another one.

What was moved and stays there is remembered once no view in the window knew it elsewhere.

Axis legend: n sights, h w the latent grid.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from worker.backbones.base import Backbone
from worker.depth.stereo import SHRINK
from worker.geometry import cat_cameras
from worker.memory.base import Delta, Memory
from worker.placed import in_quarters
from worker.revision import Found
from worker.world import MOTION_WINDOW, Sight

SURE = 0.7  # probability from which on a cell is kept out


def moving_cells(backbone: Backbone, sights: Sequence[Sight], found: Found | None = None) -> Tensor:
    """(n, h, w) bool: what moves in these views, n >= 1, as few neighbours in time tell, given the
    depth that was found for those of guessed depth.
    """
    h, w = sights[0].latents.shape[-2:]
    moving = torch.zeros(len(sights), h, w, dtype=torch.bool, device=sights[0].latents.device)
    if not backbone.sees_motion or len(sights) < 2:
        return moving
    depth = torch.cat([sight.closer for sight in sights])
    if found is not None:
        better = in_quarters(found.depth)
        which = [i for i, sight in enumerate(sights) if sight.guess is not None]
        depth[which] = torch.where(better > 0, better, depth[which])
    for end in range(len(sights), 0, -MOTION_WINDOW):
        start = max(0, end - MOTION_WINDOW)
        some = slice(start, start + MOTION_WINDOW)
        whole = torch.cat([sight.picture(backbone) for sight in sights[some]])
        cameras = cat_cameras([sight.camera for sight in sights[some]])
        likely = backbone.motion(F.avg_pool2d(whole, SHRINK), depth[some], cameras)
        moving[start:end] = likely[: end - start] >= SURE
    return moving


def kept_out(moving: Tensor, given: Tensor | None) -> Tensor:
    """Moving cells (1, h, w) and a client's mask (H", W"): (1, h, w), or of the mask's size."""
    if given is None:
        return moving
    mask = given[None].to(moving.device)
    return mask | (F.interpolate(moving[:, None].float(), size=mask.shape[1:])[:, 0] > 0)


def withdraw(memory: Memory, sights: Sequence[Sight], moving: Tensor) -> Delta:
    """Take out what these sights with a measured depth wrote of moving cells (n, h, w)."""
    measured = [i for i, sight in enumerate(sights) if sight.measured is not None]
    return memory.forget([sights[i].source for i in measured], moving[measured])
