"""Stage 2: the latent depth head, on the Laplace likelihood of log z-depth.

Latents are noised while training, since at work most of them are generated.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from worker.backbones.rays import view_rays
from worker.depth.head import DepthConfig, DepthHead
from worker.layers import channels_last
from worker.train.latents import LatentWalks
from worker.train.loop import Progress, Run, RunConfig

MAX_NOISE = 0.2
MAX_RATIO_LOG = (
    1.5  # errors beyond a factor of e^1.5 count linearly no further: guards against bad cells
)

Batch = tuple[Tensor, Tensor, Tensor]  # latents (b, c, h, w), rays (b, 2, h, w), depth (b, h, w)


def batches(walks: LatentWalks, batch_size: int) -> Callable[[torch.Generator], Batch]:
    num_scenes, num_frames = walks.latents.shape[:2]

    def make(generator: torch.Generator) -> Batch:
        scene = torch.randint(num_scenes, (batch_size,), generator=generator)
        frame = torch.randint(num_frames, (batch_size,), generator=generator)
        rays = view_rays(walks.cameras[scene, frame])
        return walks.latents[scene, frame].float(), rays, walks.depth[scene, frame]

    return make


def depth_loss(
    head: DepthHead, batch: Batch, generator: torch.Generator
) -> tuple[Tensor, dict[str, float]]:
    latents, rays, depth = batch
    amount = MAX_NOISE * torch.rand(len(latents), 1, 1, 1, generator=generator)
    latents = latents + amount * torch.randn(latents.shape, generator=generator)
    with torch.autocast(latents.device.type, torch.bfloat16):
        log_depth, log_scale = head(latents, rays)
    valid = depth > 0
    error = (log_depth - depth.clamp(min=1e-3).log()).abs().clamp(max=MAX_RATIO_LOG)[valid]
    spread = log_scale[valid]
    loss = (error * torch.exp(-spread) + spread).mean() + error.mean()
    with torch.no_grad():
        absrel = ((log_depth.exp() - depth).abs() / depth.clamp(min=1e-3))[valid].mean()
    return loss, {"absrel": float(absrel)}


def train_depth(
    cfg: RunConfig, walks: LatentWalks, folder: Path, head_cfg: DepthConfig | None = None
) -> tuple[DepthHead, Progress]:
    torch.manual_seed(cfg.seed)
    head = channels_last(DepthHead(head_cfg or DepthConfig()))
    run = Run(cfg, head, folder)
    progress = run.train(
        batches(walks, cfg.batch_size), lambda batch, g: depth_loss(head, batch, g)
    )
    return head, progress
