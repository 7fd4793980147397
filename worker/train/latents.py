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
from worker.geometry import Cameras, lift, pool_depth
from worker.layers import channels_last
from worker.placed import FINER
from worker.precision import autocast, fast_dtype
from worker.train.data import Walks
from worker.train.mirror import Mirrored


@dataclass(frozen=True)
class LatentWalks:
    """s walks of t frames."""

    latents: Tensor  # (s, t, c, h, w) bfloat16
    depth: Tensor  # (s, t, h, w) float32 z-depth, 0 where a cell has none or shows what moves
    closer: Tensor  # (s, t, FINER h, FINER w) float16, the same of the parts of cells
    still: Tensor  # (s, t, h, w) bool: cells that show nothing that moves
    cameras: Cameras  # (s, t) at grid size


@torch.no_grad()
def encode_walks(codec: Codec, walks: Walks | Mirrored, device: str = "cpu") -> LatentWalks:
    """All frames of a set through the encoder, in the fast format; the result is on the CPU."""
    h, w = walks.cfg.height // STRIDE, walks.cfg.width // STRIDE
    encoder, dtype = fast_copy(codec, device), fast_dtype(device)
    frames = torch.arange(walks.cfg.num_frames)[None]
    latents, depths, closer, still = [], [], [], []
    for scene in range(walks.cfg.num_scenes):
        index = torch.tensor([scene])
        images = walks.images(index, frames)[0].to(device, dtype)
        images = images.contiguous(memory_format=torch.channels_last)
        latents.append(encoder.encode(images).bfloat16().cpu())
        views, moving = walks.cameras(index, frames)[0], walks.motion_masks(index, frames)[0]
        measured = walks.depths(index, frames)[0]
        lifted = lift(measured, views, (h, w), moving)
        depths.append(torch.where(lifted.valid, lifted.depth, 0.0))
        closer.append(pool_depth(measured, (FINER * h, FINER * w), moving).half())
        still.append(F.max_pool2d(moving.float(), STRIDE) == 0)
    everything = torch.arange(walks.cfg.num_scenes)
    cameras = walks.cameras(everything, frames.expand(len(everything), -1)).resized(h, w)
    depth, parts = torch.stack(depths).float(), torch.stack(closer)
    return LatentWalks(torch.stack(latents), depth, parts, torch.stack(still), cameras)


@torch.no_grad()
def predict_depths(head: DepthHead, walks: LatentWalks, device: str = "cpu") -> Tensor:
    """The head's own z-depth of every frame: (s, t, h, w) float32 on the CPU."""
    rows, head = [], head.to(device)
    for scene in range(len(walks.latents)):
        latents = walks.latents[scene].to(device).float()
        rays = view_rays(walks.cameras[scene]).to(device)
        with autocast(latents.device.type):
            out = head(latents, rays, torch.zeros_like(latents[:, 0]))
        rows.append(to_depth(*out)[0].cpu())
    return torch.stack(rows)


def fast_copy(codec: Codec, device: str) -> Codec:
    """To run, not to train."""
    copy = Codec(codec.cfg)
    copy.load_state_dict(codec.state_dict())
    return channels_last(copy.to(device, fast_dtype(device)))
