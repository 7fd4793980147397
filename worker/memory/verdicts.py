"""What new views say about old points: replaced by something better, or seen through.

A point is *replaced* if it lies on the surface of a new cell that takes its place and is clearly
better, or hides that surface although it was only generated and the new one was observed. It is
*seen through* if it lies clearly nearer than everything the view sees around it, provided that the
view resolves the point's patch; one such view makes it worth little, a second one removes it.

Axis legend: T views, h w the latent grid, m events.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from worker.geometry import Cameras
from worker.memory.points import Points, stretch
from worker.memory.sight import columns
from worker.projection import NEAR_M, FramePatches, pitches, quality_of
from worker.splat import cpu as splat_cpu
from worker.splat.columns import Rules, Scene

OUTRANKS = 32.0  # a quality ratio that resolution alone does not reach: observed against generated
SAME_EXTENT = 1.25  # an old point up to this much longer is covered by the new one alone
COARSER = 1.5  # a view whose cells are wider than that many patches may overlook them
CLEAR_OBSERVED = 1 / 64  # a point this much nearer than an observed depth contradicts it
CLEAR_GENERATED = 1 / 8  # likewise than a predicted depth
REPLACED, SEEN_THROUGH = 0, 1
CHUNK = 1 << 17  # point-view pairs looked at once by plain torch


@dataclass(frozen=True)
class Evidence:
    """What the new views saw, (T, h, w) each."""

    depth: Tensor  # float32 z-depth, 0 = unknown
    extent: Tensor  # float32 metres, the longest side of the cell's patch
    quality: Tensor  # uint8
    replaces: Tensor  # bool: this cell is added in place of what was known there
    observed: bool


def judge(points: Points, views: Cameras, evidence: Evidence, better_ratio: float) -> Tensor:
    """(m, 2) int64 rows and REPLACED or SEEN_THROUGH, one per view that says so, in any order."""
    scene = _scene(evidence, better_ratio)
    if views.intrinsics.device.type != "cpu":
        return judged_by_torch(points, views, scene)
    return splat_cpu.judge(*columns(points), views, scene, Rules(COARSER, SAME_EXTENT))


def overruled(quality: Tensor, ratio: float) -> Tensor:
    """int16, the highest quality code of which each of these is more than `ratio` times as good."""
    known = quality_of(torch.arange(256, device=quality.device))
    return (torch.searchsorted(known * ratio, known, right=False) - 1).short()[quality.long()]


def _scene(evidence: Evidence, better_ratio: float) -> Scene:
    depth, quality = evidence.depth, evidence.quality
    if evidence.observed:
        share, may_strike = CLEAR_OBSERVED, torch.full_like(quality, 255, dtype=torch.int16)
    else:  # what was observed stands against what is imagined
        share = CLEAR_GENERATED
        known = quality_of(torch.arange(256, device=quality.device))
        best = torch.searchsorted(known, known * OUTRANKS, right=True) - 1
        may_strike = best.short()[quality.long()]
    nearest = -torch.nn.functional.max_pool2d(-depth[:, None], 3, 1, 1)[:, 0]
    kept = torch.nn.functional.pad((~evidence.replaces).float(), (1, 1, 1, 1), value=1.0)
    maps = Scene(
        depth=depth,
        extent=evidence.extent,
        replaces=evidence.replaces,
        inside=torch.nn.functional.max_pool2d(kept, 3, stride=1) == 0,
        clear=nearest * (1 - share),
        may_replace=overruled(quality, better_ratio),
        outranks=overruled(quality, max(OUTRANKS, better_ratio)),
        may_strike=may_strike,
    )
    return Scene(*(value.flatten() for value in maps))


def judged_by_torch(points: Points, views: Cameras, scene: Scene) -> Tensor:
    """The same in plain torch."""
    everything, events = torch.arange(len(points.rows), device=views.intrinsics.device), []
    for rows in everything.split(max(1, CHUNK // len(views))):
        patches = points.patches(rows)
        quality, slant = points["quality"][rows], points["slant"][rows]
        for kind, said in _said(patches, quality, slant, views, scene):
            row = rows[said.nonzero()[:, 1]]
            events.append(torch.stack([row, torch.full_like(row, kind)], dim=1))
    return torch.cat(events) if events else everything.new_zeros(0, 2)


def _said(
    patches: FramePatches, quality: Tensor, slant: Tensor, views: Cameras, scene: Scene
) -> list[tuple[int, Tensor]]:
    """(kind, (T, n) bool) what each view says about each patch."""
    h, w = views.height, views.width
    local = patches.seen_by(views, slice(None))
    fx, fy, cx, cy = views.intrinsics.float()[..., None].unbind(1)
    z, inverse = local.z, 1 / local.z
    u, v = local.x * fx * inverse + cx, local.y * fy * inverse + cy
    seen = (z > NEAR_M) & (u >= 0) & (u < w) & (v >= 0) & (v < h)
    column, row = (torch.where(seen, value, 0.0).floor() for value in (u, v))
    view = torch.arange(len(views), device=z.device)[:, None]
    at = (view * h + row.long()) * w + column.long()
    code = quality.short()[None]
    footprint = pitches(views)[:, None]
    through = (z < scene.clear[at]) & (code <= scene.may_strike[at])
    through &= z * footprint <= COARSER * local.size
    depth, extent = scene.depth[at], scene.extent[at]
    mine = local.size * stretch(slant)
    x = ((u - cx) * z - ((column + 0.5) - cx) * depth) / fx
    y = ((v - cy) * z - ((row + 0.5) - cy) * depth) / fy
    apart = (x * x + y * y) + (z - depth) * (z - depth)
    reach = torch.maximum(mine, extent)
    gone = (apart <= reach * reach) | ((z < depth) & (code <= scene.outranks[at]))
    gone &= scene.replaces[at] & (code <= scene.may_replace[at])
    gone &= scene.inside[at] | (mine <= SAME_EXTENT * extent)
    return [(REPLACED, gone & seen), (SEEN_THROUGH, through & seen)]
