"""Stage 8: the denoiser again, now judged by the pictures that its latents decode to.

Distance between latents is a poor measure of what people see: much of a latent says where the grid
lay, not what the world looks like. So the loss is the distance of decoded pictures, that of their
features in a network trained on photographs, and a critic's opinion, since a distance of pixels
alone asks for the blurred mean of all pictures that may be right. Where the memory shows what was
seen, the distances count in full; where the model invents, less, as nobody knows the truth there;
and where it goes on from its own earlier chunks (worker/train/rollout.py) not at all: it should
keep what it has made. Most samples are one step from noise alone, as at work.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from worker.backbones.denoiser import Denoiser
from worker.codec import Codec, psnr
from worker.depth.head import DepthHead
from worker.train.codec import difference
from worker.train.critic import Critic, apart
from worker.train.denoiser import Batch, decode, denoised, judging, pixels_of
from worker.train.denoiser import make_batch as single
from worker.train.footage import Footage
from worker.train.loop import Progress, Run, RunConfig
from worker.train.rollout import Player, Rollout, begin

NUM_DECODED = 2  # frames per chunk that are decoded, for speed


@dataclass(frozen=True)
class PolishConfig:
    latent_weight: float = 0.05
    invented_weight: float = 0.5  # of both distances where the model invents
    likeness: float = 1.0  # the pull of features as a share of the pixels'
    realism: float = 2.0  # the critic's
    rollout_share: float = 0.4  # of the batches
    first_share: float = 0.85  # of the samples: one step from noise alone, as at work


def polish_loss(
    denoiser: Denoiser,
    codec: Codec,
    critic: Critic,
    batch: Batch,
    generator: torch.Generator,
    cfg: PolishConfig,
) -> tuple[Tensor, dict[str, float]]:
    condition, target, still = batch.condition, batch.target, batch.still
    clean = denoised(denoiser, batch, generator, cfg.first_share)
    frames = torch.randperm(clean.shape[1], generator=generator)[:NUM_DECODED]
    fake = decode(codec, clean[:, frames])

    def pixels(cells: Tensor) -> Tensor:
        return pixels_of(cells[:, frames]).flatten(0, 1)

    with torch.no_grad():  # what moves is nobody's fault
        real = torch.where(pixels(still)[:, None], decode(codec, target[:, frames]), fake)
    travels = condition.front.coverage == 0
    weight = batch.known + cfg.invented_weight * travels
    invented = pixels(~batch.known & still)
    pull, looks, figures = pulled(fake.detach(), real, pixels(weight), invented, critic, cfg)
    aim = torch.where(travels[:, :, None], target, condition.front.tokens)
    judged = (travels | ~batch.known) & still
    error = ((clean - aim).square().mean(2) * judged).sum() / judged.sum().clamp(min=1)
    loss = (fake * pull).sum() + cfg.latent_weight * error
    with torch.no_grad():
        quality = psnr(fake, real, pixels(batch.known)).nanmean()
    figures["latent"] = float(error.detach())
    if not quality.isnan():  # some batches know nothing
        figures["known_psnr"] = float(quality)
    figures["critic"] = critic.learn(torch.cat([real, fake.detach()]), looks, invented)
    return loss, figures


def pulled(
    fake: Tensor,  # (n, 3, H, W)
    real: Tensor,
    weight: Tensor,  # (n, H, W) of both distances
    invented: Tensor,  # (n, H, W) bool
    critic: Critic,
    cfg: PolishConfig,
) -> tuple[Tensor, list[Tensor], dict[str, float]]:
    """The gradient that the pictures should follow, what the critic saw in the true ones and in
    these, and what the gradient comes from; features and critic pull with a share of what pixels do
    (as in VQGAN, Esser et al. 2021).
    """
    fake.requires_grad_()
    distance = (difference(fake, real) * weight).mean()
    (pull,) = torch.autograd.grad(distance, fake)
    size = pull.norm()
    with torch.no_grad():
        wanted = critic.look(real)
    seen = critic.look(fake)
    unlike, praise = apart(seen[1:], wanted[1:], weight), critic.praise(seen, invented)
    for part, share in ((unlike, cfg.likeness), (-praise, cfg.realism)):
        (other,) = torch.autograd.grad(part, fake, retain_graph=True)
        pull = pull + share * size / other.norm().clamp(min=1e-12) * other
    figures = {"distance": float(distance.detach()), "unlike": float(unlike.detach())}
    return pull, [torch.cat(both) for both in zip(wanted, seen, strict=True)], figures


def batches(
    codec: Codec, footage: Footage, batch_size: int, rollout_share: float
) -> Callable[[torch.Generator], Batch | Rollout]:
    return partial(make_batch, codec, footage, batch_size, rollout_share)


def make_batch(
    codec: Codec,
    footage: Footage,
    batch_size: int,
    rollout_share: float,
    generator: torch.Generator,
) -> Batch | Rollout:
    if torch.rand((), generator=generator) < rollout_share:
        return begin(footage, batch_size, generator)
    return single(codec, footage, batch_size, generator)


def polish(
    cfg: RunConfig,
    denoiser: Denoiser,
    codec: Codec,
    depth_head: DepthHead,
    footage: Footage,
    folder: Path,
    polish_cfg: PolishConfig | None = None,
) -> Progress:
    """Train `denoiser` in place. A resumed run starts with a new critic."""
    torch.manual_seed(cfg.seed)
    chosen = polish_cfg or PolishConfig()
    judge, critic = judging(codec, cfg.device), Critic().to(cfg.device)
    player = Player(codec, denoiser, depth_head, cfg.device)
    run = Run(cfg, denoiser, folder)

    def loss_of(
        start: Batch | Rollout, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        if isinstance(start, Rollout):
            start = player.play(denoiser, footage.latents, start, generator)
        return polish_loss(denoiser, judge, critic, start, generator, chosen)

    return run.train(batches(codec, footage, cfg.batch_size, chosen.rollout_share), loss_of)
