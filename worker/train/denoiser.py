"""Stage 7: the denoiser, on readouts of real memories that were filled the way they are at work.

Per sample a chunk of one walk (4 frames, or 1 as for live poses, forwards or backwards) and a
memory written from some of the other frames: those that came before, as on a way out, or any; a few
or every third; often the frame before the chunk is the last of them, sometimes there are none at
all. Depth is the truth, the truth with a wrong scale, the head's own, or what comparing pictures
makes of that; tokens are sometimes noisy. What the memory then shows is the condition; the loss is
taken at a random point of the flow, wherever nothing moves.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from worker.backbones.base import Condition
from worker.backbones.denoiser import Denoiser, DenoiserConfig
from worker.backbones.mini import moved
from worker.backbones.sampler import interpolate, noise_level, times
from worker.codec import STRIDE, Codec, psnr
from worker.conditioning import stacked
from worker.geometry import stack_cameras
from worker.layers import channels_last
from worker.memory import create_memory
from worker.memory.base import Delta, Memory, ReadMode, Readout
from worker.precision import autocast
from worker.train.codec import difference
from worker.train.footage import EVERY, Footage, Source, drawn_source
from worker.train.latents import LatentWalks
from worker.train.loop import Progress, Run, RunConfig

CHUNK = 4
NUM_STEPS = 4  # the flow is trained at the points where the sampler evaluates it
NO_MEMORY_SHARE = 0.15
SHORT_SHARE = 0.25  # chunks of one frame
REGULAR_SHARE = 0.3  # memories of every EVERY-th frame, the others of a few at random
WAY_OUT_SHARE = 0.5  # memories that hold what came before the chunk and nothing of what follows
HEAD_SHARE = 0.15  # memories with the head's own depth
COMPARED_SHARE = 0.15  # memories with what comparing pictures makes of that
WRONG_SCALE_SHARE = 0.15  # of those with true depth: frames disagree about scale
NOISY_SHARE = 0.15  # memories with noisy tokens
MAX_CONTEXT = 4
LATENT_WEIGHT = 0.1  # of the flow's distance between latents beside that of pictures


@dataclass(frozen=True)
class Batch:
    condition: Condition
    target: Tensor  # (b, t, c, h, w) latents of the truth
    still: Tensor  # (b, t, h, w) bool: cells that show nothing that moves
    known: Tensor  # (b, t, h, w) bool: cells where the memory shows what was really seen


@dataclass(frozen=True)
class Plan:
    """Which frames of one walk play which part."""

    scene: int
    recent: int
    targets: list[int]
    context: list[int]  # written to the memory, oldest first
    depth: Source
    wrong_scale: bool
    noisy: bool


def plan(walks: LatentWalks, length: int, generator: torch.Generator) -> Plan:
    num_scenes, num_frames = walks.latents.shape[:2]

    def below(n: int) -> int:
        return int(torch.randint(n, (), generator=generator))

    def chance(share: float) -> bool:
        return bool(torch.rand((), generator=generator) < share)

    start = below(num_frames - length)
    order = list(range(start, start + length + 1))
    backwards = chance(0.5)
    recent, *targets = order[::-1] if backwards else order
    before = range(recent + 1, num_frames) if backwards else range(recent)
    elsewhere = [f for f in range(num_frames) if f not in targets and f != recent]
    others = list(before) if chance(WAY_OUT_SHARE) else elsewhere
    depth = drawn_source(HEAD_SHARE, COMPARED_SHARE, generator)
    shuffled = [others[i] for i in torch.randperm(len(others), generator=generator).tolist()]
    context = shuffled[: below(MAX_CONTEXT)]
    if depth == "compared" or chance(REGULAR_SHARE):
        context = others[below(EVERY) :: EVERY]
    if chance(0.7):  # at work the frame before the chunk is nearly always remembered
        context = [*context, recent]
    if chance(NO_MEMORY_SHARE):
        context = []
    return Plan(
        scene=below(num_scenes),
        recent=recent,
        targets=targets,
        context=context,
        depth=depth,
        wrong_scale=depth == "true" and chance(WRONG_SCALE_SHARE),
        noisy=chance(NOISY_SHARE),
    )


def remember(
    footage: Footage, part: Plan, generator: torch.Generator
) -> tuple[Memory, list[Delta]]:
    """A memory of the plan's context frames, and what was written to it."""
    walks = footage.latents
    channels, h, w = walks.latents.shape[2:]
    memory = create_memory("latent", channels, (h, w), "cpu")
    depths, deltas = footage.depths(part.scene, part.context, part.depth), []
    for frame, depth in zip(part.context, depths, strict=True):
        if part.wrong_scale:
            depth = depth * torch.exp(0.04 * torch.randn((), generator=generator))
        tokens = walks.latents[part.scene, frame].float()
        if part.noisy:
            amount = 0.2 * torch.rand((), generator=generator)
            tokens = tokens + amount * torch.randn(tokens.shape, generator=generator)
        cameras = walks.cameras[part.scene, frame : frame + 1]
        deltas.append(memory.write(tokens[None], depth[None], cameras, [frame], observed=True))
    return memory, deltas


def show(walks: LatentWalks, part: Plan, memory: Memory, look: ReadMode = "nearest") -> Readout:
    """What a memory shows to the plan's targets."""
    return memory.read(walks.cameras[part.scene, part.targets], look)


def batches(codec: Codec, footage: Footage, batch_size: int) -> Callable[[torch.Generator], Batch]:
    return partial(make_batch, codec, footage, batch_size)


@torch.no_grad()
def make_batch(
    codec: Codec, footage: Footage, batch_size: int, generator: torch.Generator
) -> Batch:
    short = bool(torch.rand((), generator=generator) < SHORT_SHARE)
    length, size = (1, 2 * batch_size) if short else (CHUNK, batch_size)
    parts = [plan(footage.latents, length, generator) for _ in range(size)]
    memories = [remember(footage, part, generator)[0] for part in parts]
    return batch_of(codec, footage.latents, parts, memories)


def batch_of(
    codec: Codec, walks: LatentWalks, parts: Sequence[Plan], memories: Sequence[Memory]
) -> Batch:
    readouts = [show(walks, *one, codec.look) for one in zip(parts, memories, strict=True)]
    condition = conditioned(walks, parts, readouts)
    known = condition.front.coverage > 0
    with autocast("cpu"):
        condition = moved(codec, condition)
    return Batch(condition, *truth(walks, parts), known)


def conditioned(
    walks: LatentWalks, parts: Sequence[Plan], readouts: Sequence[Readout]
) -> Condition:
    """What the denoiser is told; the tokens are not yet moved."""
    scene = torch.tensor([part.scene for part in parts])[:, None]
    recent = torch.tensor([part.recent for part in parts])[:, None]
    front, finer = stacked(readouts)
    return Condition(
        front,
        cameras=stack_cameras([walks.cameras[p.scene, p.targets] for p in parts]),
        recent=walks.latents[scene, recent].float(),
        recent_cameras=walks.cameras[scene, recent],
        finer=finer,
    )


def truth(walks: LatentWalks, parts: Sequence[Plan]) -> tuple[Tensor, Tensor]:
    """Latents (b, t, c, h, w) of the plans' targets, and which cells are still (b, t, h, w)."""
    scene = torch.tensor([part.scene for part in parts])[:, None]
    targets = torch.tensor([part.targets for part in parts])
    return walks.latents[scene, targets].float(), walks.still[scene, targets]


def denoised(
    denoiser: Denoiser, batch: Batch, generator: torch.Generator, first_share: float = 0.0
) -> Tensor:
    """The network's guess (b, t, c, h, w) at a random point of each sample's flow; this share of
    them at the first one, where there is nothing but noise.
    """
    condition, target = batch.condition, batch.target
    noise = torch.randn(target.shape, generator=generator).to(target.device)
    point = torch.randint(NUM_STEPS, (len(target),), generator=generator)
    point[torch.rand(len(target), generator=generator) < first_share] = 0
    t = torch.tensor(times(NUM_STEPS))[point].to(target.device)
    coverage = condition.front.coverage
    noisy = interpolate(condition.front.tokens, coverage, noise, target, t)
    level = noise_level(coverage, t[:, None, None, None])
    with autocast(target.device.type):
        clean: Tensor = denoiser(noisy, level, condition)
    return clean.float()


def denoiser_loss(
    denoiser: Denoiser, codec: Codec, batch: Batch, generator: torch.Generator
) -> tuple[Tensor, dict[str, float]]:
    """Distance of latents where the flow travels, of decoded pictures where the memory shows what
    is there: much of a latent says nothing about the picture, and the mover's work would be undone.
    """
    condition, target, still = batch.condition, batch.target, batch.still
    clean = denoised(denoiser, batch, generator)
    travels = (condition.front.coverage == 0) & still
    error = (clean - target).square().mean(2)
    latent = (error * travels).sum() / travels.sum().clamp(min=1)
    frame = int(torch.randint(target.shape[1], (), generator=generator))
    known = pixels_of(~travels & still)[:, frame]
    fake = decode(codec, clean[:, frame : frame + 1])
    with torch.no_grad():
        real = decode(codec, target[:, frame : frame + 1])
    distance = (difference(fake, real) * known).sum() / known.sum().clamp(min=1)
    with torch.no_grad():
        figures = {"distance": float(distance), "uncovered": float(latent)}
        quality = psnr(fake, real, known).nanmean()
        if not quality.isnan():  # some batches cover nothing
            figures["covered_psnr"] = float(quality)
    return distance + LATENT_WEIGHT * latent, figures


def pixels_of(cells: Tensor) -> Tensor:
    """(..., h, w) bool -> (..., H, W) bool."""
    return cells.repeat_interleave(STRIDE, -2).repeat_interleave(STRIDE, -1)


def decode(codec: Codec, latents: Tensor) -> Tensor:
    """(b, t, c, h, w) -> (b * t, 3, H, W)."""
    with autocast(latents.device.type):
        images = codec.decode(latents.flatten(0, 1))
    return images.float()


def judging(codec: Codec, device: str) -> Codec:
    """A copy of the codec, to decode guesses where the denoiser trains."""
    return copy.deepcopy(codec).requires_grad_(False).to(device)


def train_denoiser(
    cfg: RunConfig,
    codec: Codec,
    footage: Footage,
    folder: Path,
    denoiser_cfg: DenoiserConfig | None = None,
) -> tuple[Denoiser, Progress]:
    torch.manual_seed(cfg.seed)
    denoiser = channels_last(Denoiser(denoiser_cfg or DenoiserConfig()))
    run, judge = Run(cfg, denoiser, folder), judging(codec, cfg.device)
    progress = run.train(
        batches(codec, footage, cfg.batch_size),
        lambda batch, g: denoiser_loss(denoiser, judge, batch, g),
    )
    return denoiser, progress
