"""Stage 4: the denoiser again, now judged by the pictures that its latents decode to.

Distance between latents is a poor measure of what people see: much of a latent says where the grid
lay, not what the world looks like. So the loss is the distance of decoded pictures, plus a critic's
opinion, since a distance alone asks for the blurred mean of all pictures that may be right. The
critic's pull is scaled to a share of the distance's own (as in VQGAN, Esser et al. 2021).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from worker.backbones.denoiser import Denoiser
from worker.codec import Codec, psnr
from worker.train.codec import difference
from worker.train.critic import Critic
from worker.train.denoiser import Batch, batches, decode, denoised, judging, pixels_of
from worker.train.latents import LatentWalks
from worker.train.loop import Progress, Run, RunConfig

NUM_DECODED = 2  # frames per chunk that are decoded, for speed


@dataclass(frozen=True)
class PolishConfig:
    latent_weight: float = 0.05
    realism: float = 3.0  # the critic's pull as a share of the distance's


def polish_loss(
    denoiser: Denoiser,
    codec: Codec,
    critic: Critic,
    batch: Batch,
    generator: torch.Generator,
    cfg: PolishConfig,
) -> tuple[Tensor, dict[str, float]]:
    condition, target, still = batch
    clean = denoised(denoiser, batch, generator)
    frames = torch.randperm(clean.shape[1], generator=generator)[:NUM_DECODED]
    fake = decode(codec, clean[:, frames])
    with torch.no_grad():
        real = decode(codec, target[:, frames])
        judged = pixels_of(still[:, frames]).flatten(0, 1)[:, None]
        real = torch.where(judged, real, fake)  # what moves is nobody's fault
    known = pixels_of(condition.coverage[:, frames] > 0).flatten(0, 1)
    pull, distance = pulled(fake.detach(), real, critic, cfg.realism)
    travels = (condition.coverage == 0) & still
    error = (clean - target).square().mean(2)
    latent = (error * travels).sum() / travels.sum().clamp(min=1)
    loss = (fake * pull).sum() + cfg.latent_weight * latent
    with torch.no_grad():
        quality = psnr(fake, real, known).nanmean()
    figures = {"distance": distance, "latent": float(latent.detach())}
    if not quality.isnan():  # some batches cover nothing
        figures["covered_psnr"] = float(quality)
    return loss, figures | {"critic": critic.learn(real, fake.detach())}


def pulled(fake: Tensor, real: Tensor, critic: Critic, realism: float) -> tuple[Tensor, float]:
    """The gradient that the pictures (n, 3, H, W) should follow, and their distance."""
    fake.requires_grad_()
    distance = difference(fake, real).mean()
    (to_truth,) = torch.autograd.grad(distance, fake)
    (to_real,) = torch.autograd.grad(-critic(fake).mean(), fake)
    scale = to_truth.norm() / to_real.norm().clamp(min=1e-12)
    return to_truth + realism * scale * to_real, float(distance.detach())


def polish(
    cfg: RunConfig,
    denoiser: Denoiser,
    codec: Codec,
    walks: LatentWalks,
    predicted: Tensor,
    folder: Path,
    polish_cfg: PolishConfig | None = None,
) -> Progress:
    """Train `denoiser` in place. A resumed run starts with a new critic."""
    torch.manual_seed(cfg.seed)
    judge, critic = judging(codec, cfg.device), Critic().to(cfg.device)
    run, chosen = Run(cfg, denoiser, folder), polish_cfg or PolishConfig()
    return run.train(
        batches(codec, walks, predicted, cfg.batch_size),
        lambda batch, g: polish_loss(denoiser, judge, critic, batch, g, chosen),
    )
