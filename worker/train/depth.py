"""Stage 2: the latent depth head, on the Laplace likelihood of log z-depth.

Beside the likelihood, the loss asks for depths that are right in proportion, and for steps between
cells near and far apart that are right whatever the scale: a surface of the wrong shape can't be
aligned to a memory, one of the wrong scale can. Most samples come with what is seen of their
picture; the others have latents alone, and those are noised, since at work they are generated. Half
of the samples get a hint: what a memory of a few other frames shows, with depths that are all wrong
by one factor, as they are at work. The head is then asked for depths that go on from there: the
truth, times the factor that the hint shows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from worker.depth.head import DepthConfig, DepthHead
from worker.layers import channels_last
from worker.precision import autocast
from worker.train.depth_views import MAX_CONTEXT, DepthViews
from worker.train.loop import Progress, Run, RunConfig

MAX_NOISE = 0.2
MAX_RATIO_LOG = (
    1.5  # errors beyond a factor of e^1.5 count linearly no further: guards against bad cells
)
SHAPE_WEIGHT = 0.5
SHAPE_STRIDES = (1, 2, 5, 10)  # cells between the ends of a step
HINT_SHARE = 0.5
SEEN_SHARE = 0.75
SCALE_SPREAD = 0.15  # standard deviation of the log of a world's wrong scale
FRAME_SPREAD = 0.04  # and of each frame's own
MIN_HINT = 0.05  # of the cells that a hint must cover to set the scale


@dataclass(frozen=True)
class Batch:
    latents: Tensor  # (b, c, h, w)
    rays: Tensor  # (b, 2, h, w)
    hints: Tensor  # (b, h, w)
    depth: Tensor  # (b, h, w)
    half: Tensor  # (b, c', h / 2, w / 2) what is seen of the picture, 0 where it is not
    quarter: Tensor  # (b, c", h / 4, w / 4)
    is_seen: Tensor  # (b,) bool


def batches(views: DepthViews, batch_size: int) -> Callable[[torch.Generator], Batch]:
    return partial(make_batch, views, batch_size)


@torch.no_grad()
def make_batch(views: DepthViews, batch_size: int, generator: torch.Generator) -> Batch:
    rows = torch.randint(len(views), (batch_size,), generator=generator)
    depths, hints = views.depth[rows], torch.zeros(batch_size, *views.depth.shape[1:])
    for i, row in enumerate(rows[: round(HINT_SHARE * batch_size)].tolist()):
        hints[i] = rescaled(views.hint[row], views.source[row], generator)
        depths[i] *= ratio(hints[i], depths[i])
    is_seen = torch.rand(batch_size, generator=generator) < SEEN_SHARE
    half, quarter = (
        part[rows].float() * is_seen[:, None, None, None] for part in (views.half, views.quarter)
    )
    latents, rays = views.latents[rows].float(), views.rays[rows]
    return Batch(latents, rays, hints, depths, half, quarter, is_seen)


def rescaled(hint: Tensor, source: Tensor, generator: torch.Generator) -> Tensor:
    """A hint (h, w) as wrong as at work: all of it by one factor, each frame by its own."""
    scale = SCALE_SPREAD * torch.randn((), generator=generator)
    factors = torch.exp(scale + FRAME_SPREAD * torch.randn(MAX_CONTEXT, generator=generator))
    return hint * factors[source.long()]


def ratio(shown: Tensor, depth: Tensor) -> Tensor:
    """The factor by which a hint (h, w) differs from the truth; 1 where it says too little."""
    both = (shown > 0) & (depth > 0)
    if both.float().mean() < MIN_HINT:
        return torch.ones(())
    return (shown[both] / depth[both]).median()


def depth_loss(
    head: DepthHead, batch: Batch, generator: torch.Generator
) -> tuple[Tensor, dict[str, float]]:
    latents, hints, depth = batch.latents, batch.hints, batch.depth
    amount = MAX_NOISE * torch.rand(len(latents), 1, 1, 1, generator=generator)
    noise = (amount * torch.randn(latents.shape, generator=generator)).to(latents.device)
    latents = latents + noise * ~batch.is_seen[:, None, None, None]
    # Among so few cells the flash kernel's way back takes eight times as long on a CPU.
    with sdpa_kernel(SDPBackend.MATH), autocast(latents.device.type):
        log_depth, log_scale = head(latents, batch.rays, hints, (batch.half, batch.quarter))
    valid = depth > 0
    apart = (log_depth - depth.clamp(min=1e-3).log()).clamp(-MAX_RATIO_LOG, MAX_RATIO_LOG)
    error = apart.abs()
    spread = log_scale[valid]
    loss = (error[valid] * torch.exp(-spread) + spread).mean()
    loss = loss + torch.expm1(apart[valid]).abs().mean()
    loss = loss + SHAPE_WEIGHT * shape_error(apart, valid)
    with torch.no_grad():
        relative = (log_depth.exp() - depth).abs() / depth.clamp(min=1e-3)
        free = (hints.flatten(1).amax(1) == 0)[:, None, None] & valid
        unseen = (hints.flatten(1).amax(1) > 0)[:, None, None] & (hints == 0) & valid
        told = batch.is_seen[:, None, None]
        parts = {"absrel": free & told, "absrel_blind": free & ~told, "absrel_beside_hint": unseen}
        figures = {name: float(relative[part].mean()) for name, part in parts.items() if part.any()}
    return loss, figures


def shape_error(apart: Tensor, valid: Tensor) -> Tensor:
    """Mean error of the steps between cells, over several strides in u and v; log errors and
    validity are (b, h, w).
    """
    total = apart.new_zeros(())
    for stride in SHAPE_STRIDES:
        for axis in (1, 2):
            length = apart.shape[axis] - stride
            if length < 1:
                continue
            ends = [(part.narrow(axis, 0, length), part.narrow(axis, stride, length))
                    for part in (apart, valid)]  # fmt: skip
            step = (ends[0][1] - ends[0][0]).abs()
            both = ends[1][0] & ends[1][1]
            total = total + (step * both).sum() / both.sum().clamp(min=1)
    return total / (2 * len(SHAPE_STRIDES))


def train_depth(
    cfg: RunConfig, views: DepthViews, folder: Path, head_cfg: DepthConfig | None = None
) -> tuple[DepthHead, Progress]:
    torch.manual_seed(cfg.seed)
    sees = (views.half.shape[1], views.quarter.shape[1])
    head = channels_last(DepthHead(replace(head_cfg or DepthConfig(), sees=sees)))
    run = Run(cfg, head, folder)
    progress = run.train(
        batches(views, cfg.batch_size), lambda batch, g: depth_loss(head, batch, g)
    )
    return head, progress
