"""Stage 4: the denoiser again, now judged by the pictures that its latents decode to.

Distance between latents is a poor measure of what people see: much of a latent says where the grid
lay, not what the world looks like. So the loss is the distance of decoded pictures, plus a critic's
opinion, since a distance alone asks for the blurred mean of all pictures that may be right. Where
the memory shows what was seen, distance counts in full; where the model invents, little, as nobody
knows the truth there; and where it goes on from its own earlier chunks (worker/train/rollout.py)
not at all: it should keep what it has made. The critic's pull is scaled to a share of the
distance's own (as in VQGAN, Esser et al. 2021).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from worker.backbones.denoiser import Denoiser
from worker.codec import Codec, psnr
from worker.depth.head import DepthHead
from worker.train.codec import difference
from worker.train.critic import Critic
from worker.train.denoiser import Batch, batches, decode, denoised, judging, pixels_of
from worker.train.latents import LatentWalks
from worker.train.loop import Progress, Run, RunConfig
from worker.train.rollout import Player, Rollout, begin

NUM_DECODED = 2  # frames per chunk that are decoded, for speed


@dataclass(frozen=True)
class PolishConfig:
    latent_weight: float = 0.05
    invented_weight: float = 0.3  # of the distance where the model invents
    realism: float = 3.0  # the critic's pull as a share of the distance's
    rollout_share: float = 0.5  # of the batches


def polish_loss(
    denoiser: Denoiser,
    codec: Codec,
    critic: Critic,
    batch: Batch,
    generator: torch.Generator,
    cfg: PolishConfig,
) -> tuple[Tensor, dict[str, float]]:
    condition, target, still = batch.condition, batch.target, batch.still
    clean = denoised(denoiser, batch, generator)
    frames = torch.randperm(clean.shape[1], generator=generator)[:NUM_DECODED]
    fake = decode(codec, clean[:, frames])

    def pixels(cells: Tensor) -> Tensor:
        return pixels_of(cells[:, frames]).flatten(0, 1)

    with torch.no_grad():  # what moves is nobody's fault
        real = torch.where(pixels(still)[:, None], decode(codec, target[:, frames]), fake)
    travels = condition.coverage == 0
    weight = batch.known + cfg.invented_weight * travels
    invented = pixels(~batch.known & still)
    pull, distance = pulled(fake.detach(), real, pixels(weight), invented, critic, cfg.realism)
    aim = torch.where(travels[:, :, None], target, condition.tokens)
    judged = (travels | ~batch.known) & still
    error = ((clean - aim).square().mean(2) * judged).sum() / judged.sum().clamp(min=1)
    loss = (fake * pull).sum() + cfg.latent_weight * error
    with torch.no_grad():
        quality = psnr(fake, real, pixels(batch.known)).nanmean()
    figures = {"distance": distance, "latent": float(error.detach())}
    if not quality.isnan():  # some batches know nothing
        figures["known_psnr"] = float(quality)
    return loss, figures | {"critic": critic.learn(real, fake.detach(), invented)}


def pulled(
    fake: Tensor, real: Tensor, weight: Tensor, invented: Tensor, critic: Critic, realism: float
) -> tuple[Tensor, float]:
    """The gradient that the pictures (n, 3, H, W) should follow, and their distance, which counts
    as much as `weight` (n, H, W) says.
    """
    fake.requires_grad_()
    distance = (difference(fake, real) * weight).mean()
    (to_truth,) = torch.autograd.grad(distance, fake)
    (to_real,) = torch.autograd.grad(-critic.praise(fake, invented), fake)
    scale = to_truth.norm() / to_real.norm().clamp(min=1e-12)
    return to_truth + realism * scale * to_real, float(distance.detach())


def polish(
    cfg: RunConfig,
    denoiser: Denoiser,
    codec: Codec,
    depth_head: DepthHead,
    walks: LatentWalks,
    predicted: Tensor,
    folder: Path,
    polish_cfg: PolishConfig | None = None,
) -> Progress:
    """Train `denoiser` in place. A resumed run starts with a new critic."""
    torch.manual_seed(cfg.seed)
    chosen = polish_cfg or PolishConfig()
    judge, critic = judging(codec, cfg.device), Critic().to(cfg.device)
    player = Player(codec, denoiser, depth_head, cfg.device)
    run, single = Run(cfg, denoiser, folder), batches(codec, walks, predicted, cfg.batch_size)

    def make(generator: torch.Generator) -> Batch | Rollout:
        if torch.rand((), generator=generator) < chosen.rollout_share:
            return begin(walks, predicted, cfg.batch_size, generator)
        return single(generator)

    def loss_of(
        start: Batch | Rollout, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        if isinstance(start, Rollout):
            start = player.play(denoiser, walks, start, generator)
        return polish_loss(denoiser, judge, critic, start, generator, chosen)

    return run.train(make, loss_of)
