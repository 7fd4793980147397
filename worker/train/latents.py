"""Walks as the later stages see them: latents and per-cell depth, computed once from the images
with a trained codec.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from worker.backbones.rays import view_rays
from worker.codec import STRIDE, Codec
from worker.depth.head import DepthHead, to_depth
from worker.geometry import Cameras, lift
from worker.layers import channels_last
from worker.train.data import Walks
from worker.train.mirror import Mirrored


@dataclass(frozen=True)
class LatentWalks:
    """s walks of t frames."""

    latents: Tensor  # (s, t, c, h, w) bfloat16
    depth: Tensor  # (s, t, h, w) float32 z-depth, 0 where a cell has none or shows what moves
    still: Tensor  # (s, t, h, w) bool: cells that show nothing that moves
    cameras: Cameras  # (s, t) at grid size


@torch.no_grad()
def encode_walks(codec: Codec, walks: Walks | Mirrored, device: str = "cpu") -> LatentWalks:
    """All frames of a set through the encoder, in bfloat16; the result is on the CPU."""
    h, w = walks.cfg.height // STRIDE, walks.cfg.width // STRIDE
    encoder = _bfloat16_copy(codec).to(device)
    frames = torch.arange(walks.cfg.num_frames)[None]
    latents, depths, still = [], [], []
    for scene in range(walks.cfg.num_scenes):
        index = torch.tensor([scene])
        images = walks.images(index, frames)[0].to(device, torch.bfloat16)
        images = images.contiguous(memory_format=torch.channels_last)
        latents.append(encoder.encode(images).cpu())
        views, moving = walks.cameras(index, frames)[0], walks.motion_masks(index, frames)[0]
        lifted = lift(walks.depths(index, frames)[0], views, (h, w), moving)
        depths.append(torch.where(lifted.valid, lifted.depth, 0.0))
        still.append(F.max_pool2d(moving.float(), STRIDE) == 0)
    everything = torch.arange(walks.cfg.num_scenes)
    cameras = walks.cameras(everything, frames.expand(len(everything), -1)).resized(h, w)
    return LatentWalks(
        torch.stack(latents), torch.stack(depths).float(), torch.stack(still), cameras
    )


@torch.no_grad()
def predict_depths(head: DepthHead, walks: LatentWalks, device: str = "cpu") -> Tensor:
    """The head's own z-depth of every frame: (s, t, h, w) float32 on the CPU."""
    rows, head = [], head.to(device)
    for scene in range(len(walks.latents)):
        latents = walks.latents[scene].to(device).float()
        rays = view_rays(walks.cameras[scene]).to(device)
        with torch.autocast(latents.device.type, torch.bfloat16):
            out = head(latents, rays, torch.zeros_like(latents[:, 0]))
        rows.append(to_depth(*out)[0].cpu())
    return torch.stack(rows)


def _bfloat16_copy(codec: Codec) -> Codec:
    copy = Codec(codec.cfg)
    copy.load_state_dict(codec.state_dict())
    return channels_last(copy.bfloat16())
