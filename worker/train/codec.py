"""Stage 1: the codec with its mover, trained so that its tokens survive being moved.

Per sample two context views and one target view of the same world. A context view is decoded from
its own latents; the target from what a real memory of the context views shows it, re-drawn by the
mover. The memory holds each token's address instead of the token, so that gradients reach the
encoder through the same choice of winners as at work. What moves is neither remembered nor judged.
Noise on the latents makes the decoder tolerate what a denoiser gets wrong. Photographs join as
pictures that are only coded, never moved.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from worker.codec import STRIDE, Codec, CodecConfig, psnr
from worker.geometry import Cameras
from worker.layers import channels_last
from worker.memory import create_memory
from worker.memory.base import Readout, joined
from worker.placed import Placed
from worker.precision import autocast
from worker.train.data import Walks, window
from worker.train.loop import Progress, Run, RunConfig
from worker.train.pictures import Pictures

LATENT_NOISE = 0.05
LATENT_PENALTY = 1e-4
NUM_CONTEXT = 2
MAX_SPAN = 12  # target and context lie within so many frames of each other


@dataclass(frozen=True)
class Batch:
    images: Tensor  # (b, NUM_CONTEXT + 1, 3, H, W), the target last
    readout: (
        Readout  # (b, ...) of the target; tokens (b, 3, h, w) are addresses: context, row, column
    )
    judged: Tensor  # (b, H, W) bool: the target's pixels that show nothing that moves
    pictures: Tensor  # (p, 3, H, W) photographs, or none


def batches(
    walks: Walks, batch_size: int, pictures: Pictures | None = None
) -> Callable[[torch.Generator], Batch]:
    """Views [context, context, target] of random walks."""
    return partial(make_batch, walks, batch_size, pictures)


def make_batch(
    walks: Walks, batch_size: int, pictures: Pictures | None, generator: torch.Generator
) -> Batch:
    span = min(MAX_SPAN, walks.cfg.num_frames)
    scenes = torch.randint(walks.cfg.num_scenes, (batch_size,), generator=generator)
    start = torch.randint(walks.cfg.num_frames - span + 1, (batch_size, 1), generator=generator)
    frames = start + window(span, NUM_CONTEXT + 1, generator, batch_size)
    depths, cameras = walks.depths(scenes, frames), walks.cameras(scenes, frames)
    moving = walks.motion_masks(scenes, frames)
    readouts = [addresses(depths[i], cameras[i], moving[i]) for i in range(batch_size)]
    images = walks.images(scenes, frames)
    photos = images[:0, 0]
    if pictures is not None:
        crops = pictures.batch(generator, batch_size // 2, *images.shape[-2:])
        photos = crops.float() / 127.5 - 1
    return Batch(images, joined(readouts), ~moving[:, -1], photos)


def addresses(depths: Tensor, cameras: Cameras, moving: Tensor) -> Readout:
    """What a memory of k context views shows to the target, the last of depths and motion masks (k
    + 1, H, W) and of cameras (k + 1,).
    """
    k, h, w = len(depths) - 1, depths.shape[-2] // STRIDE, depths.shape[-1] // STRIDE
    rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    memory = create_memory("latent", 3, (h, w), "cpu")
    for i in range(k):
        address = torch.stack([torch.full_like(rows, i), rows, columns])[None].float()
        one = slice(i, i + 1)
        memory.write(address, depths[one], cameras[one], [i], mask=moving[one], observed=True)
    return memory.read(cameras[k:], "nearest")


def fetched(latents: Tensor, address: Tensor) -> Tensor:
    """Tokens (b, c, h, w) of latents (b, k, c, h, w) at addresses (b, 3, h, w)."""
    h, w = latents.shape[-2:]
    context, row, column = address.long().unbind(1)
    flat = ((context * h + row) * w + column).flatten(1)[:, None]
    tokens = latents.transpose(1, 2).flatten(2)
    found: Tensor = tokens.gather(2, flat.expand(-1, tokens.shape[1], -1)).unflatten(2, (h, w))
    return found


def difference(prediction: Tensor, target: Tensor) -> Tensor:
    """Charbonnier distance per pixel (n, H, W): nearly L1, but smooth where the picture is already
    good.
    """
    return ((prediction.float() - target).square() + 2e-4).sqrt().mean(1)


def codec_loss(
    codec: Codec, batch: Batch, generator: torch.Generator
) -> tuple[Tensor, dict[str, float]]:
    images, seen = batch.images, batch.readout
    b, k = len(images), images.shape[1] - 1
    with autocast(images.device.type):
        encoded = codec.encode(torch.cat([images[:, :-1].flatten(0, 1), batch.pictures])).float()
    penalty = encoded.square().mean()
    noise = torch.randn(encoded.shape, generator=generator).to(encoded.device)
    noisy = encoded + LATENT_NOISE * noise
    views = noisy[: b * k].unflatten(0, (b, k))
    with autocast(images.device.type):
        tokens = fetched(views, seen.tokens)
        front = Placed(tokens, seen.coverage, seen.depth, seen.offset, seen.span)
        moved = codec.move(front).float()
        decoded = codec.decode(torch.cat([views[:, 0], noisy[b * k :], moved])).float()
    own = torch.cat([images[:, 0], batch.pictures])
    plain, target = difference(decoded[: len(own)], own).mean(), images[:, -1]
    pixels = F.interpolate((seen.coverage > 0)[:, None].float(), scale_factor=STRIDE)[:, 0]
    pixels = pixels * batch.judged
    warped = (difference(decoded[len(own) :], target) * pixels).sum() / pixels.sum().clamp(min=1.0)
    loss = plain + warped + LATENT_PENALTY * penalty
    with torch.no_grad():
        quality = psnr(decoded[: len(own)], own)
        figures = {
            "psnr": float(quality[:b].mean()),
            "psnr_moved": float(psnr(decoded[len(own) :], target, pixels).nanmean()),
            "latent_rms": float(penalty.sqrt()),
        }
        if len(batch.pictures):
            figures["psnr_pictures"] = float(quality[b:].mean())
    return loss, figures


def train_codec(
    cfg: RunConfig,
    walks: Walks,
    folder: Path,
    codec: Codec | None = None,
    pictures: Pictures | None = None,
) -> tuple[Codec, Progress]:
    """Train a new codec, or go on with the one given."""
    torch.manual_seed(cfg.seed)
    codec = channels_last(codec or Codec(CodecConfig()))
    run = Run(cfg, codec, folder)
    progress = run.train(
        batches(walks, cfg.batch_size, pictures), lambda batch, g: codec_loss(codec, batch, g)
    )
    scenes = torch.arange(min(64, walks.cfg.num_scenes))
    images = walks.images(scenes, torch.zeros_like(scenes)[:, None])[:, 0]
    with torch.no_grad():
        codec.normalise_to(codec.encode(images.to(cfg.device)))
    return codec, progress
