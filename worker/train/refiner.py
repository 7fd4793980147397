"""Stage 3: what tells where surfaces end (worker/depth/refine.py), on what sweeps find.

Of each walk some frames are compared once, as they are at work: decoded pictures, the depth head's
guess wrong by a factor. What is told of them is made anew each time they are drawn, forth or back
or in a mirror. The loss is the error that is to be expected of an offer that is taken as likely as
the network says: it asks for one offer, never for a mean of two surfaces.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from worker.backbones.rays import view_rays
from worker.codec import Codec
from worker.depth.head import DepthHead, to_depth
from worker.depth.refine import Refiner, RefinerConfig, as_parts, chosen, evidence
from worker.depth.seen import seen
from worker.depth.stereo import compare
from worker.geometry import pool_depth
from worker.layers import channels_last, module_dtype
from worker.photographic import Features
from worker.pixels import from_uint8, to_uint8
from worker.placed import FINER
from worker.precision import autocast
from worker.train.data import Walks
from worker.train.latents import LatentWalks, fast_copy
from worker.train.loop import Progress, Run, RunConfig, step_generator

NUM_FRAMES = 6  # of each walk: at work a picture is compared with about as many
NUM_WALKS = 240  # at most, as comparing takes seconds each
REGULAR_SHARE = 0.67  # of walks whose frames are evenly apart
SCALE = 0.1  # standard deviation of the log of the factor that guesses are wrong by
WORST = 0.3  # log of an error that counts; beyond, worse is no worse


@dataclass(frozen=True)
class Compared:
    """n frames of each of s walks, and what comparing them found."""

    pictures: Tensor  # (s, n, H, W, 3) uint8
    rough: Tensor  # (s, n, h, w) float32
    closer: Tensor  # (s, n, CLOSER h, CLOSER w) float32
    truth: Tensor  # (s, n, FINER h, FINER w) float16, 0 where unknown or something moves
    frames: Tensor  # (s, n) int64


@dataclass(frozen=True)
class Batch:
    pictures: Tensor  # (m, c, y, x) by parts
    offers: Tensor  # (m, k, y, x)
    planes: Tensor
    truth: Tensor  # (m, y, x)


@torch.no_grad()
def compare_walks(
    walks: Walks,
    latents: LatentWalks,
    codec: Codec,
    head: DepthHead,
    eyes: Features,
    device: str = "cpu",
) -> Compared:
    """Some frames of each walk, a function of its number; the result is on the CPU."""
    scenes = range(min(NUM_WALKS, walks.cfg.num_scenes))
    guess = partial(guessed, head.to(device), eyes.to(device))
    decoder = fast_copy(codec, device)
    rows = [
        compared(walks, latents, decoder, guess, scene, device)
        for scene in tqdm(scenes, "compared", unit="walk")
    ]
    return Compared(*(torch.stack(part) for part in zip(*rows, strict=True)))


def compared(
    walks: Walks,
    latents: LatentWalks,
    decoder: Codec,
    guess: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
    scene: int,
    device: str,
) -> tuple[Tensor, ...]:
    """One row of `Compared`."""
    generator = step_generator(0, scene)
    frames = drawn(walks.cfg.num_frames, generator)
    index = torch.tensor([scene]), torch.tensor([frames])
    given, cameras = walks.images(*index)[0].to(device), walks.cameras(*index)[0].to(device)
    tokens = latents.latents[scene, frames].to(device)
    shown = to_uint8(decoder.decode(tokens.to(module_dtype(decoder))).float())
    rays, pictures = view_rays(latents.cameras[scene, frames]).to(device), from_uint8(shown)
    look = partial(guess, tokens.float(), rays)
    prior, confidence = look(given, torch.zeros_like(rays[:, 0]))
    prior = prior * torch.exp(SCALE * torch.randn((), generator=generator)).to(device)
    found = compare(pictures, cameras, prior, confidence, partial(look, pictures))
    grid = (FINER * prior.shape[1], FINER * prior.shape[2])
    moving, measured = walks.motion_masks(*index)[0], walks.depths(*index)[0]
    truth = pool_depth(measured, grid, moving).half()
    return shown.cpu(), found.rough.cpu(), found.closer.cpu(), truth, index[1][0]


def guessed(
    head: DepthHead, eyes: Features, tokens: Tensor, rays: Tensor, pictures: Tensor, hint: Tensor
) -> tuple[Tensor, Tensor]:
    """z-depth and confidence."""
    with autocast(tokens.device.type):
        return to_depth(*head(tokens, rays, hint, seen(eyes, pictures)))


def drawn(num_frames: int, generator: torch.Generator) -> list[int]:
    """NUM_FRAMES of a walk's frames in order, evenly apart or at random."""
    if torch.rand((), generator=generator) < REGULAR_SHARE:
        step = num_frames // NUM_FRAMES
        first = int(torch.randint(num_frames - step * (NUM_FRAMES - 1), (), generator=generator))
        return [first + step * i for i in range(NUM_FRAMES)]
    return sorted(torch.randperm(num_frames, generator=generator)[:NUM_FRAMES].tolist())


def batches(walks: Walks, found: Compared, batch_size: int) -> Callable[[torch.Generator], Batch]:
    return partial(make_batch, walks, found, batch_size)


@torch.no_grad()
def make_batch(walks: Walks, found: Compared, batch_size: int, generator: torch.Generator) -> Batch:
    samples = [sample(walks, found, generator) for _ in range(batch_size)]
    parts = zip(*(vars(one).values() for one in samples), strict=True)
    return Batch(*(torch.cat(part) for part in parts))


def sample(walks: Walks, found: Compared, generator: torch.Generator) -> Batch:
    """One walk's NUM_FRAMES frames."""

    def chance() -> bool:
        return bool(torch.rand((), generator=generator) < 0.5)

    scene = int(torch.randint(len(found.frames), (), generator=generator))
    order = torch.arange(NUM_FRAMES)
    order = order.flip(0) if chance() else order
    cameras = walks.cameras(torch.tensor([scene]), found.frames[scene, order][None])[0]
    pictures = from_uint8(found.pictures[scene, order])
    maps = [one[scene, order].float() for one in (found.closer, found.rough, found.truth)]
    if chance():
        cameras, pictures = cameras.mirrored(), pictures.flip(-1)
        maps = [one.flip(-1) for one in maps]
    closer, rough, truth = maps
    told = evidence(pictures, cameras, closer, rough)
    return Batch(as_parts(pictures, told.planes), *told, truth)


def refiner_loss(refiner: Refiner, batch: Batch) -> tuple[Tensor, dict[str, float]]:
    """The expected error of log depth."""
    with autocast(batch.planes.device.type):
        logits, shift = refiner(batch.pictures, batch.planes)
    known = batch.truth > 0
    truth = batch.truth.clamp(min=1e-3).log()
    errors = (batch.offers + shift[:, None] - truth[:, None]).abs().clamp(max=WORST)
    error = (logits.softmax(1) * errors).sum(1)
    with torch.no_grad():
        after = (chosen(batch.offers, logits, shift).log() - truth).abs()[known]
        before = (batch.offers[:, 0] - truth).abs()[known]
        figures = {
            f"{name}_{percent}": float((off > percent / 100).float().mean())
            for name, off in (("before", before), ("after", after))
            for percent in (2, 5, 20)
        }
    return error[known].mean(), figures


def train_refiner(
    cfg: RunConfig,
    walks: Walks,
    found: Compared,
    folder: Path,
    refiner_cfg: RefinerConfig | None = None,
) -> tuple[Refiner, Progress]:
    torch.manual_seed(cfg.seed)
    refiner = channels_last(Refiner(refiner_cfg or RefinerConfig()))
    run = Run(cfg, refiner, folder)
    progress = run.train(
        batches(walks, found, cfg.batch_size), lambda batch, _: refiner_loss(refiner, batch)
    )
    return refiner, progress
