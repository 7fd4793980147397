"""Stage: the motion head, on evidence as it is at work.

Per sample a view of one walk, the view before it (one to three frames away) and a memory written
from some other frames, with or without their movers masked; depth is the truth, the truth with
noise, or the depth head's own. Samples are made once, since memories are slow to fill, and seen
many times. Cells count as moving from a quarter of their pixels on: from there on the surface that
a memory would write for the cell may be the mover's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from worker.depth.align import align_depths
from worker.dynamics_head import Before, MotionConfig, MotionHead, evidence
from worker.geometry import Cameras, pool_depth
from worker.layers import channels_last
from worker.memory import create_memory
from worker.memory.base import Readout
from worker.train.data import Walks
from worker.train.latents import LatentWalks
from worker.train.loop import Progress, Run, RunConfig

MOVING_SHARE = 0.25  # of a cell's pixels
NUM_SAMPLES = 2400
MAX_GAP = 3  # frames between a view and the one before it
MAX_CONTEXT = 4
UNMASKED_SHARE = 0.35  # memories that movers were written to
NO_BEFORE_SHARE = 0.08  # first views
PREDICTED_SHARE, NOISY_SHARE = 0.3, 0.2  # of depth
MOVING_WEIGHT = 3.0  # of moving cells in the loss: there are few

Batch = tuple[Tensor, Tensor]  # evidence (b, 3c + 7, h, w), labels (b, h, w) in {0, 1}


@dataclass(frozen=True)
class Views:
    """k walks of t frames."""

    latents: Tensor  # (k, t, c, h, w) bfloat16
    cameras: Cameras  # (k, t) at grid size
    depth: Tensor  # (k, t, h, w) metres, of what moves as well
    predicted: Tensor  # (k, t, h, w) metres, the depth head's
    moving: Tensor  # (k, t, h, w) bool


@dataclass(frozen=True)
class Samples:
    evidence: Tensor  # (n, 3c + 7, h, w) bfloat16
    moving: Tensor  # (n, h, w) bool


def pick_scenes(walks: Walks, still_share: float = 0.25) -> Tensor:
    """Numbers of the walks worth learning from: all in which something moves, and a few others."""
    lively = torch.tensor([bool(scene.any()) for scene in walks.moving])
    still = (~lively).nonzero()[:, 0][:: max(1, round(1 / still_share))]
    return torch.cat([lively.nonzero()[:, 0], still])


def true_cells(walks: Walks, scenes: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Depth (k, t, h, w) in metres of what is seen, moving or not, and moving cells (bool)."""
    depths, moving = [], []
    frames = torch.arange(walks.cfg.num_frames)[None]
    for scene in scenes[:, None]:
        depths.append(pool_depth(walks.depths(scene, frames)[0], grid))
        masks = walks.motion_masks(scene, frames)[0]
        share = F.interpolate(masks[:, None].float(), size=grid, mode="area")[:, 0]
        moving.append(share >= MOVING_SHARE)
    return torch.stack(depths), torch.stack(moving)


def gather_views(walks: Walks, latents: LatentWalks, predicted: Tensor) -> Views:
    """What samples are made from; `predicted` (s, t, h, w) as of `predict_depths`."""
    scenes = pick_scenes(walks)
    h, w = latents.latents.shape[-2:]
    depth, moving = true_cells(walks, scenes, (h, w))
    if not moving.any():
        raise ValueError("nothing moves in these walks: render some with dynamic scenes")
    rows = (latents.latents[scenes], latents.cameras[scenes], depth, predicted[scenes], moving)
    return Views(*rows)


@torch.no_grad()
def make_samples(views: Views, num: int, seed: int) -> Samples:
    rows, labels = [], []
    for index in range(num):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + index)
        one, label = _sample(views, generator)
        rows.append(one.bfloat16())
        labels.append(label)
    return Samples(torch.cat(rows), torch.stack(labels))


def _sample(views: Views, g: torch.Generator) -> tuple[Tensor, Tensor]:
    num_scenes, num_frames = views.latents.shape[:2]

    def below(n: int) -> int:
        return int(torch.randint(n, (), generator=g))

    def chance(share: float) -> bool:
        return bool(torch.rand((), generator=g) < share)

    scene = below(num_scenes)
    gap = 1 + below(min(MAX_GAP, num_frames - 1))
    frame = gap + below(num_frames - gap)
    before = frame - gap
    if chance(0.3):
        frame, before = before, frame
    context = [f for f in torch.randperm(num_frames, generator=g).tolist() if f != frame]
    context = context[: below(MAX_CONTEXT + 1)] + ([before] if chance(0.8) else [])
    readout = _remember(views, scene, frame, context, masked=not chance(UNMASKED_SHARE))
    depth = views.depth[scene, frame][None]
    if chance(PREDICTED_SHARE):
        own = views.predicted[scene, frame][None]
        depth = align_depths(own, readout.depth, readout.coverage)
    elif chance(NOISY_SHARE):
        depth = depth * torch.exp(0.05 * torch.randn((), generator=g))
    preceding = Before(
        views.latents[scene, before][None].float(),
        views.cameras[scene, before : before + 1],
        torch.tensor([not chance(NO_BEFORE_SHARE)]),
    )
    features = evidence(
        views.latents[scene, frame][None].float(),
        depth,
        views.cameras[scene, frame : frame + 1],
        preceding,
        readout.tokens,
        readout.coverage,
        readout.depth,
    )
    return features, views.moving[scene, frame]


def _remember(views: Views, scene: int, frame: int, context: list[int], masked: bool) -> Readout:
    """What a memory of the context frames shows to the frame."""
    channels, h, w = views.latents.shape[2:]
    memory = create_memory("latent", channels, (h, w), "cpu")
    for other in context:
        memory.write(
            views.latents[scene, other][None].float(),
            views.depth[scene, other][None],
            views.cameras[scene, other : other + 1],
            [other],
            mask=views.moving[scene, other][None] if masked else None,
            observed=True,
        )
    return memory.read(views.cameras[scene, frame : frame + 1], "nearest")


def batches(samples: Samples, batch_size: int) -> Callable[[torch.Generator], Batch]:
    def make(generator: torch.Generator) -> Batch:
        picked = torch.randint(len(samples.moving), (batch_size,), generator=generator)
        return samples.evidence[picked].float(), samples.moving[picked].float()

    return make


def motion_loss(
    head: MotionHead, batch: Batch, generator: torch.Generator
) -> tuple[Tensor, dict[str, float]]:
    features, target = batch
    with torch.autocast(features.device.type, torch.bfloat16):
        logits = head(features)
    weight = 1 + (MOVING_WEIGHT - 1) * target
    pointwise = F.binary_cross_entropy_with_logits(logits, target, weight)
    # Dice over the batch: nearly what is measured, intersection over union.
    probability = logits.sigmoid()
    overlap = (probability * target).sum()
    dice = 1 - (2 * overlap + 1) / (probability.sum() + target.sum() + 1)
    return pointwise + 0.5 * dice, {"iou": iou(logits, target > 0.5)}


@torch.no_grad()
def iou(logits: Tensor, moving: Tensor) -> float:
    """Intersection over union of all cells together."""
    said = logits > 0
    union = (said | moving).sum()
    return float((said & moving).sum() / union) if union else 1.0


@torch.no_grad()
def validation_iou(head: MotionHead, samples: Samples) -> float:
    logits = [head(part.float()) for part in samples.evidence.split(32)]
    return iou(torch.cat(logits), samples.moving)


def train_motion(
    cfg: RunConfig,
    samples: Samples,
    folder: Path,
    head_cfg: MotionConfig | None = None,
) -> tuple[MotionHead, Progress]:
    torch.manual_seed(cfg.seed)
    head = channels_last(MotionHead(head_cfg or MotionConfig()))
    run = Run(cfg, head, folder)
    progress = run.train(
        batches(samples, cfg.batch_size), lambda batch, g: motion_loss(head, batch, g)
    )
    return head, progress
