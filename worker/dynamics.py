"""The dynamics filter: what moves is kept out of the static memory.

Three witnesses are combined into the `mask` of a write: what the client says (its mask always
counts), the motion head, and geometry. The head's probability alone must be high; where what is
seen now stands clearly before what the memory shows, a lower one suffices. A cell next to sure
motion is masked sooner, as its token is blended with the mover's.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from worker.backbones.base import Backbone
from worker.dynamics_head import Before, evidence
from worker.geometry import Cameras, cat_cameras, pool_depth
from worker.memory.base import Readout
from worker.world import World

SURE = 0.5  # probability that masks a cell by itself
LIKELY = 0.25  # that masks it before a remembered surface or beside a sure cell
BEFORE_SURFACE = 0.85  # measured depth over remembered depth, from which down it stands before it


def dynamic_cells(
    backbone: Backbone,
    world: World,
    latents: Tensor,  # (t, c, h, w) of consecutive views
    depth: Tensor,  # (t, H', W') z-depth in metres, 0 or not finite = unknown
    cameras: Cameras,  # (t,)
    readout: Readout,  # of the same cameras
    given: Tensor | None = None,  # (t, H", W") bool, the client's mask: True = keep out
) -> Tensor:
    """(t, h, w) bool, or of the size of what was `given`: what must not enter the memory."""
    grid = (latents.shape[-2], latents.shape[-1])
    depth = pool_depth(depth.to(latents.device), grid)
    latents, views = latents.float(), cameras.to(latents.device).resized(*grid)
    probability = backbone.motion(
        evidence(
            latents,
            depth,
            views,
            preceding(world, latents, views),
            readout.tokens,
            readout.coverage,
            readout.depth,
        )
    )
    moving = decide(probability, depth, readout)
    if given is None:
        return moving
    given = given.to(moving.device)
    return given | (F.interpolate(moving[:, None].float(), size=given.shape[1:])[:, 0] > 0)


def preceding(world: World, latents: Tensor, views: Cameras) -> Before:
    """The World's latest view before the first of these, then each one's predecessor."""
    known = torch.ones(len(latents), dtype=torch.bool, device=latents.device)
    if world.latents is None or world.cameras is None:
        first, camera, known[0] = latents[:1], views[:1], False
    else:
        first = world.latents[-1:].float().to(latents.device)
        camera = world.cameras[-1:].to(latents.device).resized(views.height, views.width)
    return Before(torch.cat([first, latents[:-1]]), cat_cameras([camera, views[:-1]]), known)


def decide(probability: Tensor, depth: Tensor, readout: Readout) -> Tensor:
    """(t, h, w) bool, from the head's probability and from measured against remembered depth."""
    sure = probability >= SURE
    beside = F.max_pool2d(sure[:, None].float(), 3, 1, 1)[:, 0] > 0
    in_front = (depth > 0) & (depth < BEFORE_SURFACE * readout.depth)
    return sure | ((probability >= LIKELY) & (beside | in_front))
