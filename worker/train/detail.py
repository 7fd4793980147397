"""Stage 2: the codec's decoder again, now judged by a critic, so that fine things come out sharp.

A distance alone asks for the mean of all details that a token may stand for, which is blurred: most
of all where tokens were moved. Encoder and mover stay as they are, and with them every latent, so
the stages after this one may be trained before it, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from worker.codec import Codec
from worker.layers import channels_last
from worker.train.codec import Batch, batches, qualities, redrawn
from worker.train.critic import Critic, pulled
from worker.train.data import Walks
from worker.train.loop import Progress, Run, RunConfig
from worker.train.pictures import Pictures


@dataclass(frozen=True)
class DetailConfig:
    realism: float = 1.0  # the critic's pull as a share of the distance's


def detail_loss(
    codec: Codec, critic: Critic, batch: Batch, generator: torch.Generator, cfg: DetailConfig
) -> tuple[Tensor, dict[str, float]]:
    made = redrawn(codec, batch, generator)
    fake = made.images
    real = torch.where(made.judged[:, None], made.truth, fake.detach())
    weight = torch.ones_like(real[:, 0])
    pull, distance = pulled(fake.detach(), real, weight, weight, critic, cfg.realism)
    learnt = critic.learn(real, fake.detach(), weight)
    figures = qualities(made, len(batch.images)) | {"distance": distance, "critic": learnt}
    return (fake * pull).sum(), figures


def train_detail(
    cfg: RunConfig,
    codec: Codec,
    walks: Walks,
    folder: Path,
    pictures: Pictures | None = None,
    detail_cfg: DetailConfig | None = None,
) -> Progress:
    """Train the decoder of `codec` in place. A resumed run starts with a new critic."""
    torch.manual_seed(cfg.seed)
    codec = channels_last(codec.to(cfg.device))
    codec.encoder.requires_grad_(False)
    codec.mover.requires_grad_(False)
    critic, chosen = Critic().to(cfg.device), detail_cfg or DetailConfig()
    return Run(cfg, codec.decoder, folder).train(
        batches(walks, cfg.batch_size, pictures),
        lambda batch, g: detail_loss(codec, critic, batch, g, chosen),
    )
