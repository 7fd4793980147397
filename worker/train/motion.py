"""Stage 4: the motion head, on a few views at a time of worlds in which things move.

A sample is up to MOTION_WINDOW views of one walk, some frames apart as observations are, each
to be judged by comparing it with the others. Depth is the truth, the truth of a wrong scale or with
noise, as it is found by comparing pictures (wrong where something moves) or the depth head's own;
some poses are a little off, some exposures differ. Cells count as moving from a quarter of their
pixels on: from there on the surface that a memory would write for the cell may be the mover's.
Walks without movers teach what a still world looks like.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from worker.codec import STRIDE
from worker.depth.stereo import SHRINK
from worker.dynamics_head import MotionConfig, MotionHead, all_others
from worker.geometry import Cameras, cat_cameras, pool_depth
from worker.layers import channels_last
from worker.placed import CLOSER, in_quarters
from worker.precision import autocast
from worker.train.data import Walks
from worker.train.loop import Progress, Run, RunConfig
from worker.world import MOTION_WINDOW

MOVING_SHARE = 0.25  # of a cell's pixels
STILL_SHARE = 0.3  # walks without movers per walk with one
MAX_GAP = 3  # frames of a walk between two views
SHORT_SHARE = 0.25  # of windows with fewer views than there may be
SCALED_SHARE, NOISY_SHARE, COMPARED_SHARE, PREDICTED_SHARE = 0.1, 0.1, 0.2, 0.1  # of windows
SCALE, NOISE, COMPARED_NOISE = 0.05, 0.02, 0.03  # logs: how far off depth is in these
ASTRAY = 0.25  # of what moves, where depth comes from comparing pictures
SHIFTED_SHARE = 0.2  # of windows whose poses are off by up to about
SHIFT_M, TURN_RAD = 0.01, 0.005
EXPOSURE = 0.03  # log of the factor on brightness between views
MOVING_WEIGHT = 2.0  # of moving cells in the loss: there are few


@dataclass(frozen=True)
class Scenes:
    """k walks of t frames as the head sees them."""

    pictures: Tensor  # (k, t, 3, 4 h, 4 w) uint8
    depth: Tensor  # (k, t, 2 h, 2 w) float16 metres, 0 where unknown
    moving: Tensor  # (k, t, h, w) bool
    cameras: Cameras  # (k, t)
    predicted: Tensor | None  # (k, t, h, w) float32 metres, the depth head's


@dataclass(frozen=True)
class Batch:
    pictures: Tensor  # (n, 3, 4 h, 4 w) in [-1, 1]
    depth: Tensor  # (n, 2 h, 2 w) metres
    cameras: Cameras  # (n,)
    others: Tensor  # (n, m)
    known: Tensor  # (n, m) bool
    moving: Tensor  # (n, h, w) in {0, 1}


def as_seen(walks: Walks, predicted: Tensor | None = None) -> Scenes:
    """A set of walks at the head's sizes; predicted (s, t, h, w) as of `predict_depths`."""
    cfg, scenes = walks.cfg, worth_seeing(walks)
    grid = (cfg.height // STRIDE, cfg.width // STRIDE)
    frames = torch.arange(cfg.num_frames)[None]
    pictures, depths, moving = [], [], []
    for scene in scenes[:, None]:
        images = walks.images(scene, frames)[0]
        small = F.avg_pool2d(images, SHRINK)
        pictures.append(((small + 1) * 127.5).round().byte())
        closer = (CLOSER * grid[0], CLOSER * grid[1])
        depths.append(pool_depth(walks.depths(scene, frames)[0], closer).half())
        masks = walks.motion_masks(scene, frames)[0].float()
        share = F.interpolate(masks[:, None], size=grid, mode="area")[:, 0]
        moving.append(share >= MOVING_SHARE)
    cameras = walks.cameras(scenes, frames.expand(len(scenes), -1))
    own = None if predicted is None else predicted[scenes]
    return Scenes(torch.stack(pictures), torch.stack(depths), torch.stack(moving), cameras, own)


def worth_seeing(walks: Walks) -> Tensor:
    """Numbers of the walks in which something moves, and of STILL_SHARE as many others."""
    lively = torch.tensor([bool(scene.any()) for scene in walks.moving])
    still = (~lively).nonzero()[:, 0]
    wanted = max(1, round(STILL_SHARE * int(lively.sum())))
    every = max(1, len(still) // wanted)
    return torch.cat([lively.nonzero()[:, 0], still[::every][:wanted]])


def window(scenes: Scenes, generator: torch.Generator) -> Batch:
    """Some views of one walk, in a batch of their own."""
    num_scenes, num_frames = scenes.moving.shape[:2]

    def below(n: int) -> int:
        return int(torch.randint(n, (), generator=generator))

    def chance(share: float) -> bool:
        return bool(torch.rand((), generator=generator) < share)

    scene = below(num_scenes)
    count = 1 + below(MOTION_WINDOW) if chance(SHORT_SHARE) else MOTION_WINDOW
    gap = 1 + below(min(MAX_GAP, max(1, (num_frames - 1) // (count - 1 or 1))))
    first = below(num_frames - gap * (count - 1))
    frames = torch.arange(first, first + gap * count, gap)[:count]
    pictures = scenes.pictures[scene, frames].float() / 127.5 - 1
    views = shifted(scenes.cameras[scene, frames], chance(SHIFTED_SHARE), generator)
    exposure = torch.exp(EXPOSURE * torch.randn(count, 1, 1, 1, generator=generator))
    batch = Batch(
        ((pictures + 1) * exposure - 1).clamp(max=1),
        depths_of(scenes, scene, frames, generator),
        views,
        all_others(count),
        torch.ones(count, count - 1, dtype=torch.bool),
        scenes.moving[scene, frames].float(),
    )
    return mirrored(batch) if chance(0.5) else batch


def depths_of(scenes: Scenes, scene: int, frames: Tensor, generator: torch.Generator) -> Tensor:
    """(count, 2 h, 2 w): what the views' depth is taken for."""
    depth = scenes.depth[scene, frames].float()

    def off_by(spread: float, like: Tensor) -> Tensor:
        return torch.exp(spread * torch.randn(like.shape, generator=generator))

    kind = float(torch.rand((), generator=generator))
    if kind < SCALED_SHARE:
        return depth * off_by(SCALE, depth[:, :1, :1])
    if kind < SCALED_SHARE + NOISY_SHARE:
        return depth * off_by(NOISE, depth)
    if kind < SCALED_SHARE + NOISY_SHARE + COMPARED_SHARE:
        cells = depth[:, 1::CLOSER, 1::CLOSER]
        found = cells * off_by(COMPARED_NOISE, cells)
        astray = found * off_by(ASTRAY, cells[:, :1, :1])
        return in_quarters(torch.where(scenes.moving[scene, frames], astray, found))
    if kind > 1 - PREDICTED_SHARE and scenes.predicted is not None:
        return in_quarters(scenes.predicted[scene, frames])
    return depth


def shifted(views: Cameras, is_shifted: bool, generator: torch.Generator) -> Cameras:
    if not is_shifted:
        return views
    pose = views.world_from_camera.clone()
    offset = SHIFT_M * torch.randn(len(views), 3, generator=generator)
    x, y, z = (TURN_RAD * torch.randn(3, len(views), generator=generator)).double()
    o = torch.zeros_like(x)
    turn = torch.stack([o, -z, y, z, o, -x, -y, x, o], dim=-1).unflatten(-1, (3, 3))
    pose[:, :3, :3] = pose[:, :3, :3] @ torch.linalg.matrix_exp(turn)
    pose[:, :3, 3] += offset
    return replace(views, world_from_camera=pose)


def mirrored(batch: Batch) -> Batch:
    """Left to right."""
    return replace(
        batch,
        pictures=batch.pictures.flip(-1),
        depth=batch.depth.flip(-1),
        moving=batch.moving.flip(-1),
        cameras=batch.cameras.mirrored(),
    )


def joined(parts: Sequence[Batch]) -> Batch:
    """Windows of any lengths as one batch."""
    most = max(part.others.shape[1] for part in parts)
    others, known, first = [], [], 0
    for part in parts:
        room = (0, most - part.others.shape[1])
        others.append(F.pad(part.others + first, room, value=first))
        known.append(F.pad(part.known, room))
        first += len(part.depth)
    return Batch(
        torch.cat([part.pictures for part in parts]),
        torch.cat([part.depth for part in parts]),
        cat_cameras([part.cameras for part in parts]),
        torch.cat(others),
        torch.cat(known),
        torch.cat([part.moving for part in parts]),
    )


def batches(sets: Sequence[Scenes], batch_size: int) -> Callable[[torch.Generator], Batch]:
    """Windows from each set in turn, so that each has its share, whatever their sizes."""
    return partial(make_batch, sets, batch_size)


def make_batch(sets: Sequence[Scenes], batch_size: int, generator: torch.Generator) -> Batch:
    return joined([window(sets[i % len(sets)], generator) for i in range(batch_size)])


def motion_loss(head: MotionHead, batch: Batch) -> tuple[Tensor, dict[str, float]]:
    with autocast(batch.pictures.device.type):
        logits = head(batch.pictures, batch.depth, batch.cameras, batch.others, batch.known)
    target = batch.moving
    weight = 1 + (MOVING_WEIGHT - 1) * target
    pointwise = F.binary_cross_entropy_with_logits(logits, target, weight)
    # Dice over the batch: nearly what is measured, intersection over union.
    probability = logits.sigmoid()
    overlap = (probability * target).sum()
    dice = 1 - (2 * overlap + 1) / (probability.sum() + target.sum() + 1)
    return pointwise + 0.5 * dice, {"iou": iou(logits > 0, target > 0.5)}


@torch.no_grad()
def iou(said: Tensor, moving: Tensor) -> float:
    """Intersection over union of all cells together."""
    union = (said | moving).sum()
    return float((said & moving).sum() / union) if union else 1.0


def train_motion(
    cfg: RunConfig, sets: Sequence[Scenes], folder: Path, head_cfg: MotionConfig | None = None
) -> tuple[MotionHead, Progress]:
    if not any(bool(one.moving.any()) for one in sets):
        raise ValueError("nothing moves in these walks: render some with dynamic scenes")
    torch.manual_seed(cfg.seed)
    head = channels_last(MotionHead(head_cfg or MotionConfig()))
    run = Run(cfg, head, folder)
    progress = run.train(batches(sets, cfg.batch_size), lambda batch, _: motion_loss(head, batch))
    return head, progress
