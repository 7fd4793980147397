"""Stage 1: the codec, trained so that its tokens survive being moved.

Per sample two context views and one target view of the same world. A context view is decoded from
its own latents, the target from the context views' latents warped to it by true geometry. Noise on
the latents makes the decoder tolerate what a denoiser gets wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from worker.codec import STRIDE, Codec, CodecConfig, psnr
from worker.geometry import Cameras
from worker.layers import channels_last
from worker.train.data import Walks, window
from worker.train.loop import Progress, Run, RunConfig
from worker.train.warp import at_cell_centres, inverse_warp

LATENT_NOISE = 0.05
LATENT_PENALTY = 1e-4
MOVED_WEIGHT = 0.7
SPAN = 8  # target and context lie within so many frames of each other

Batch = tuple[
    Tensor, Tensor, Cameras
]  # images (b, 3, 3, H, W), depths (b, 3, H, W), cameras (b, 3)


def batches(walks: Walks, batch_size: int) -> Callable[[torch.Generator], Batch]:
    """Views [context, context, target] of random walks."""

    def make(generator: torch.Generator) -> Batch:
        scenes = torch.randint(walks.cfg.num_scenes, (batch_size,), generator=generator)
        start = torch.randint(walks.cfg.num_frames - SPAN + 1, (batch_size, 1), generator=generator)
        frames = start + window(SPAN, 3, generator, batch_size)
        return (
            walks.images(scenes, frames),
            walks.depths(scenes, frames),
            walks.cameras(scenes, frames),
        )

    return make


def moved_latents(latents: Tensor, depths: Tensor, cameras: Cameras) -> tuple[Tensor, Tensor]:
    """Target latents (b, c, h, w) put together from the context views, and where they are (b, h, w)
    bool.

    latents (b, k, c, h, w) of the k context views, depths (b, k + 1, H, W) and cameras (b, k + 1)
    with the target last. Each cell takes the view that saw its point from nearest: views are
    chosen, not averaged.
    """
    target_depth = at_cell_centres(depths[:, -1], STRIDE)
    result = torch.zeros_like(latents[:, 0])
    nearest = torch.full_like(target_depth, float("inf"))
    for k in range(latents.shape[1]):
        warped, visible, z = inverse_warp(
            latents[:, k], depths[:, k], cameras[:, k], target_depth, cameras[:, -1]
        )
        better = visible & (z < nearest)
        result = torch.where(better[:, None], warped, result)
        nearest = torch.where(better, z, nearest)
    return result, nearest.isfinite()


def difference(prediction: Tensor, target: Tensor) -> Tensor:
    """Charbonnier distance per pixel (n, H, W): nearly L1, but smooth where the picture is already
    good.
    """
    return ((prediction.float() - target).square() + 2e-4).sqrt().mean(1)


def codec_loss(
    codec: Codec, batch: Batch, generator: torch.Generator
) -> tuple[Tensor, dict[str, float]]:
    images, depths, cameras = batch
    b, k = images.shape[:2]
    with torch.autocast(images.device.type, torch.bfloat16):
        latents = codec.encode(images[:, :-1].flatten(0, 1)).float()
    penalty = latents.square().mean()
    latents = latents + LATENT_NOISE * torch.randn(latents.shape, generator=generator)
    latents = latents.unflatten(0, (b, k - 1))
    moved, covered = moved_latents(latents, depths, cameras)
    with torch.autocast(images.device.type, torch.bfloat16):
        decoded = codec.decode(torch.cat([latents[:, 0], moved])).float()
    own, target = images[:, 0], images[:, -1]
    pixels = F.interpolate(covered[:, None].float(), scale_factor=STRIDE)[:, 0]
    plain = difference(decoded[:b], own).mean()
    warped = (difference(decoded[b:], target) * pixels).sum() / pixels.sum().clamp(min=1.0)
    loss = plain + MOVED_WEIGHT * warped + LATENT_PENALTY * penalty
    with torch.no_grad():
        figures = {
            "psnr": float(psnr(decoded[:b], own).mean()),
            "psnr_moved": float(psnr(decoded[b:], target, pixels).nanmean()),
            "latent_rms": float(penalty.sqrt()),
        }
    return loss, figures


def train_codec(
    cfg: RunConfig, walks: Walks, folder: Path, codec_cfg: CodecConfig | None = None
) -> tuple[Codec, Progress]:
    torch.manual_seed(cfg.seed)
    codec = channels_last(Codec(codec_cfg or CodecConfig()))
    run = Run(cfg, codec, folder)
    progress = run.train(
        batches(walks, cfg.batch_size), lambda batch, g: codec_loss(codec, batch, g)
    )
    scenes = torch.arange(min(64, walks.cfg.num_scenes))
    with torch.no_grad():
        codec.normalise_to(
            codec.encode(walks.images(scenes, torch.zeros_like(scenes)[:, None])[:, 0])
        )
    return codec, progress
