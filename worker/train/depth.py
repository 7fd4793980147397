"""Stage 2: the latent depth head, on the Laplace likelihood of log z-depth.

Latents are noised while training, since at work most of them are generated. Half of the samples get
a hint: what a memory of a few other frames shows, with depths that are all wrong by one factor, as
they are at work. The head is then asked for depths that go on from there: the truth, times the
factor that the hint shows.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from worker.backbones.rays import view_rays
from worker.depth.head import DepthConfig, DepthHead
from worker.layers import channels_last
from worker.memory import create_memory
from worker.train.latents import LatentWalks
from worker.train.loop import Progress, Run, RunConfig

MAX_NOISE = 0.2
MAX_RATIO_LOG = (
    1.5  # errors beyond a factor of e^1.5 count linearly no further: guards against bad cells
)
HINT_SHARE = 0.5
MAX_CONTEXT = 3
SCALE_SPREAD = 0.15  # standard deviation of the log of a world's wrong scale
FRAME_SPREAD = 0.04  # and of each frame's own
MIN_HINT = 0.05  # of the cells that a hint must cover to set the scale

Batch = tuple[Tensor, Tensor, Tensor, Tensor]  # latents (b, c, h, w), rays, hints, depths (b, h, w)


def batches(walks: LatentWalks, batch_size: int) -> Callable[[torch.Generator], Batch]:
    num_scenes, num_frames = walks.latents.shape[:2]

    @torch.no_grad()
    def make(generator: torch.Generator) -> Batch:
        scene = torch.randint(num_scenes, (batch_size,), generator=generator)
        frame = torch.randint(num_frames, (batch_size,), generator=generator)
        rays = view_rays(walks.cameras[scene, frame])
        depths = walks.depth[scene, frame].clone()
        hints = torch.zeros_like(depths)
        for i in range(round(HINT_SHARE * batch_size)):
            hints[i] = hint(walks, int(scene[i]), int(frame[i]), generator)
            depths[i] *= ratio(hints[i], depths[i])
        return walks.latents[scene, frame].float(), rays, hints, depths

    return make


def hint(walks: LatentWalks, scene: int, frame: int, generator: torch.Generator) -> Tensor:
    """(h, w) depth that a memory of other frames of the scene shows to this one, 0 for none."""
    channels, h, w = walks.latents.shape[2:]
    memory = create_memory("latent", channels, (h, w), "cpu")
    others = torch.randperm(walks.latents.shape[1], generator=generator).tolist()
    count = int(torch.randint(1, MAX_CONTEXT + 1, (), generator=generator))
    scale = SCALE_SPREAD * torch.randn((), generator=generator)
    for other in [f for f in others if f != frame][:count]:
        factor = torch.exp(scale + FRAME_SPREAD * torch.randn((), generator=generator))
        one = slice(other, other + 1)
        tokens, depth = walks.latents[scene, one].float(), walks.depth[scene, one] * factor
        memory.write(tokens, depth, walks.cameras[scene, one], [other], observed=True)
    return memory.read(walks.cameras[scene, frame : frame + 1], "nearest").depth[0]


def ratio(shown: Tensor, depth: Tensor) -> Tensor:
    """The factor by which a hint (h, w) differs from the truth; 1 where it says too little."""
    both = (shown > 0) & (depth > 0)
    if both.float().mean() < MIN_HINT:
        return torch.ones(())
    return (shown[both] / depth[both]).median()


def depth_loss(
    head: DepthHead, batch: Batch, generator: torch.Generator
) -> tuple[Tensor, dict[str, float]]:
    latents, rays, hints, depth = batch
    amount = MAX_NOISE * torch.rand(len(latents), 1, 1, 1, generator=generator)
    latents = latents + amount * torch.randn(latents.shape, generator=generator)
    with torch.autocast(latents.device.type, torch.bfloat16):
        log_depth, log_scale = head(latents, rays, hints)
    valid = depth > 0
    error = (log_depth - depth.clamp(min=1e-3).log()).abs().clamp(max=MAX_RATIO_LOG)
    spread = log_scale[valid]
    loss = (error[valid] * torch.exp(-spread) + spread).mean() + error[valid].mean()
    with torch.no_grad():
        relative = (log_depth.exp() - depth).abs() / depth.clamp(min=1e-3)
        free = (hints.flatten(1).amax(1) == 0)[:, None, None] & valid
        unseen = (hints.flatten(1).amax(1) > 0)[:, None, None] & (hints == 0) & valid
        figures = {"absrel": float(relative[free].mean())}
        if unseen.any():
            figures["absrel_beside_hint"] = float(relative[unseen].mean())
    return loss, figures


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
