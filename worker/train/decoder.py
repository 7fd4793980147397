"""Stage 6: the decoder alone, on what it is given at work.

The codec's stage trained it on latents of pictures and on tokens as the mover of those days re-drew
them; since then the mover has learnt to read whole memories. So each batch has views as real
memories show them, through the mover, and latents of single views and of photographs, a little
noisy. Encoder and mover stay as they are, so latents mean what they meant: Worlds that exist go on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from worker.codec import Codec, psnr
from worker.photographic import Features, pretrained
from worker.precision import autocast
from worker.train import mover
from worker.train.codec import LATENT_NOISE, difference
from worker.train.footage import Footage
from worker.train.loop import Progress, Run, RunConfig
from worker.train.mover import LAST_BLOCKS, NUM_TARGETS, pulled
from worker.train.pictures import Pictures

MOVED_WEIGHT = 0.5  # of what a memory shows, beside a picture's own latents
LIKENESS = 0.5  # what features pull as a share of what pixels do


@dataclass(frozen=True)
class Batch:
    shown: mover.Batch  # b memories' NUM_TARGETS views each
    pictures: Tensor  # (b, 3, H, W) photographs, or none


def batches(
    footage: Footage, batch_size: int, pictures: Pictures | None
) -> Callable[[torch.Generator], Batch]:
    return partial(make_batch, footage, batch_size, pictures)


def make_batch(
    footage: Footage, batch_size: int, pictures: Pictures | None, generator: torch.Generator
) -> Batch:
    shown = mover.make_batch(footage, batch_size, generator)
    photos = shown.images[:0]
    if pictures is not None:
        crops = pictures.batch(generator, batch_size, *shown.images.shape[-2:])
        photos = crops.float() / 127.5 - 1
    return Batch(shown, photos)


def decoder_loss(
    codec: Codec, look: Features, batch: Batch, generator: torch.Generator
) -> tuple[Tensor, dict[str, float]]:
    """Distance of decoded pictures, each as much as its kind counts, with the pull of likeness."""
    shown, photos = batch.shown, batch.pictures
    moved, views = len(shown.images), shown.images[::NUM_TARGETS]
    own = torch.cat([views, photos])
    with torch.no_grad(), autocast(own.device.type):
        latents = torch.cat([codec.move(shown.front, shown.finer), noisy(codec, own, generator)])
    with autocast(own.device.type):
        decoded = codec.decode(latents).float()
    images = torch.cat([shown.images, own])
    judged = torch.cat([shown.judged.float(), torch.ones_like(own[:, 0])])
    counts = torch.full((len(images), 1, 1), 1 / len(images), device=own.device)
    counts[:moved] *= MOVED_WEIGHT
    weight = counts * judged / judged.sum((1, 2), keepdim=True).clamp(min=1)
    looked_at = slice(moved - len(views), moved + len(views))  # of each kind but photographs
    pull, figures = pulled(decoded, images, weight, look, looked_at, LIKENESS, summed)
    with torch.no_grad():
        quality = psnr(decoded[moved:], own)
        figures["psnr_moved"] = float(psnr(decoded[:moved], shown.images, shown.judged).nanmean())
    figures["psnr"] = float(quality[: len(views)].mean())
    if len(photos):
        figures["psnr_pictures"] = float(quality[len(views) :].mean())
    return (decoded * pull).sum(), figures


def summed(decoded: Tensor, images: Tensor, weight: Tensor) -> Tensor:
    return (difference(decoded, images) * weight).sum()


def noisy(codec: Codec, images: Tensor, generator: torch.Generator) -> Tensor:
    """Their latents with up to LATENT_NOISE."""
    latents = codec.encode(images).float()
    amount = LATENT_NOISE * torch.rand(len(latents), 1, 1, 1, generator=generator)
    noise = amount * torch.randn(latents.shape, generator=generator)
    return latents + noise.to(latents.device)


def train_decoder(
    cfg: RunConfig,
    codec: Codec,
    footage: Footage,
    folder: Path,
    pictures: Pictures | None = None,
) -> Progress:
    """Train the codec's decoder in place."""
    torch.manual_seed(cfg.seed)
    codec = codec.requires_grad_(False).to(cfg.device)
    codec.decoder.requires_grad_(True)
    run, look = Run(cfg, codec.decoder, folder), pretrained("lite1", LAST_BLOCKS).to(cfg.device)
    return run.train(
        batches(footage, cfg.batch_size, pictures),
        lambda batch, generator: decoder_loss(codec, look, batch, generator),
    )
