"""What a walk is worth: every figure of one scene, by its dotted path in the report.

"Covered" always means that the latent memory shows a token there, so that all methods are scored on
the same pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from worker.depth.mirrored import depth_both_ways
from worker.engine import Engine
from worker.eval.metrics import absrel, psnr, sharpness, ssim
from worker.eval.perceptual import distance_maps, perceptual
from worker.eval.protocols import OBSERVE_EVERY, Loop, Walk

PERCEPTUAL_EVERY = 6  # frames; the network that judges is slow
NUM_PARTS = 8  # of a way back, to see whether it gets worse as it goes on

Score = tuple[str, float]


def score_scene(engine: Engine, loop: Loop, walks: Mapping[str, Walk]) -> Iterator[Score]:
    yield from score_models(engine, loop)
    for name, walk in walks.items():
        protocol = name.split(".")[0]
        for metric, value in score_walk(loop, walk, walks[f"{protocol}.latent"], protocol):
            yield f"{name}.{metric}", value


@torch.inference_mode()
def score_models(engine: Engine, loop: Loop) -> Iterator[Score]:
    """The codec's ceiling and the depth that is guessed of single pictures, on true frames."""
    latents = engine.backbone.encode(loop.images)
    decoded = engine.backbone.decode(latents)
    unknown = torch.zeros(latents[:, 0].shape)
    mirrored = engine.backbone.encode(loop.images.flip(-1))
    both = (latents, mirrored)
    depth, _ = depth_both_ways(engine.backbone, *both, loop.cameras, unknown, loop.images)
    yield "codec.psnr", mean(psnr(decoded, loop.images))
    yield "codec.ssim", mean(ssim(decoded, loop.images))
    yield "codec.sharpness", mean(sharpness(decoded, loop.images))
    some = slice(None, None, PERCEPTUAL_EVERY)
    yield "codec.perceptual", mean(perceptual(distance_maps(decoded[some], loop.images[some])))
    yield "depth.absrel", mean(absrel(depth, loop.cell_depth, loop.cell_valid))
    ratio = torch.maximum(depth / loop.cell_depth, loop.cell_depth / depth)
    yield "depth.delta_1_25", float((ratio < 1.25)[loop.cell_valid].float().mean())
    yield (
        "depth.absrel_scaled",
        mean(absrel(rescaled(depth, loop), loop.cell_depth, loop.cell_valid)),
    )


def rescaled(depth: Tensor, loop: Loop) -> Tensor:
    """Depth (n, h, w) times each frame's best scale: what is left is error of shape."""
    ratios = torch.where(loop.cell_valid, loop.cell_depth / depth, torch.nan)
    return depth * ratios.flatten(1).nanmedian(1).values[:, None, None].nan_to_num(1.0)


def score_walk(loop: Loop, walk: Walk, reference: Walk, protocol: str) -> Iterator[Score]:
    """Metrics of the return leg; `reference` says which cells count as covered."""
    keep = scored(loop, protocol)
    rows = [walk.index.index(i) for i in keep]
    images, target = walk.images[rows], loop.images[keep]
    known = reference.readout.coverage[[reference.index.index(i) for i in keep]] > 0
    pixels = to_pixels(known, target)
    every = psnr(images, target)
    yield "psnr_gt", mean(every)
    for part, values in enumerate(every.tensor_split(NUM_PARTS)):
        yield f"psnr_gt_part.{part}", mean(values)
    yield "psnr_gt_covered", mean(psnr(images, target, pixels))
    yield "psnr_gt_uncovered", mean(psnr(images, target, ~pixels))
    yield "ssim_gt", mean(ssim(images, target))
    yield "sharpness", mean(sharpness(images, target))
    some = slice(None, None, PERCEPTUAL_EVERY)
    maps = distance_maps(images[some], target[some])
    yield "perceptual", mean(perceptual(maps))
    yield "perceptual_uncovered", mean(perceptual(maps, ~pixels[some]))
    yield "coverage", float(walk.readout.coverage[rows].mean())
    valid = loop.cell_valid[keep] & (walk.depth[rows] > 0)
    yield "depth_absrel", mean(absrel(walk.depth[rows], loop.cell_depth[keep], valid))
    yield "s_per_frame", walk.s_per_frame
    for stage, spent_s in walk.stages_s.items():
        yield f"stage_s_per_frame.{stage}", spent_s
    yield "read_s_per_frame", walk.read_s_per_frame
    yield "memory_bytes", float(walk.memory_bytes)
    if walk.first_visit:
        first = torch.stack([walk.first_visit[len(loop.images) - 1 - i] for i in keep])
        yield "psnr_first_visit", mean(psnr(images, first))


def scored(loop: Loop, protocol: str) -> list[int]:
    """Frames of the return leg whose pose was not observed; the turning pose follows itself and
    says nothing.
    """
    last = len(loop.images) - 1
    back = range(loop.num_out + 1, len(loop.images))
    if protocol == "imagined":
        return list(back)
    return [i for i in back if (last - i) % OBSERVE_EVERY]


def to_pixels(cells: Tensor, images: Tensor) -> Tensor:
    """(n, h, w) bool -> (n, H, W) bool."""
    return F.interpolate(cells[:, None].float(), size=images.shape[-2:])[:, 0] > 0.5


def mean(values: Tensor) -> float:
    """Over the pictures where the metric is defined (covered-only needs covered pixels)."""
    return float(values[values.isfinite()].mean())
