"""Pluecker rays: where each latent cell looks, as the networks see it."""

from __future__ import annotations

import torch
from torch import Tensor

from worker.geometry import Cameras


def pluecker(cameras: Cameras, reference: Cameras) -> Tensor:
    """Rays of cameras (b, f) at grid size in the frame of each reference camera (b,) -> (b, f, 6,
    h, w) float32.

    Channels are the unit direction and the moment origin x direction (metres, squashed by asinh),
    so that they do not depend on where the world's origin lies.
    """
    relative = reference.camera_from_world[:, None] @ cameras.world_from_camera
    rotation = relative[..., None, :3, :3].transpose(-1, -2)
    direction = torch.nn.functional.normalize(cameras.rays() @ rotation, dim=-1)
    origin = relative[..., None, None, :3, 3].expand_as(direction)
    moment = torch.asinh(torch.linalg.cross(origin, direction))
    return torch.cat([direction, moment], dim=-1).movedim(-1, -3).float()


def view_rays(cameras: Cameras) -> Tensor:
    """(n, 2, h, w) float32: x and y of each cell's ray with z = 1; tells a single view its field of
    view.
    """
    return cameras.rays()[..., :2].movedim(-1, -3).float()
