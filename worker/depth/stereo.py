"""Depth from several posed pictures of a world that stands still: where poses are known, what one
picture leaves open, the next ones tell.

A sweep over factors on a prior (the depth head's) compares each picture with what the others show
at the depth in question (plane sweep, Collins 1996, with the prior's shape in place of planes).
Differences of pictures without their local mean, so that exposure says nothing, are averaged over
the better half of the others, as a surface may be hidden in some. Together with the prior's own
uncertainty they are smoothed among cells by semi-global matching (Hirschmueller 2008), which
carries the scale of what was matched on to what has no texture. Where nothing moves in the picture
when depth does (a camera that turns) the prior stays, and does no harm.

A cell whose depth the other pictures contradict is given up: better a gap that another picture
fills than a surface in mid-air. Two depths agree where they show the same spot, so the less the
camera moves the more they may differ.

Axis legend: n pictures, o = n - 1 others of each, s factors, H W pixels compared, h w cells.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from worker.depth.head import spread_of
from worker.geometry import Cameras

MEAN_PX = 9  # of the square whose mean is taken off
REACH = 0.8  # factors lie within exp(-REACH) and exp(REACH)
NUM_FACTORS = 25
WORST = 0.15  # differences (of 2 in all) count up to here: beyond, something else is seen
WEIGHT = 240.0  # of a difference
PRIOR_WEIGHT = 0.2  # of the log of a factor in units of the prior's spread
MIN_SPREAD = 0.1
STEP_COST, JUMP_COST = 0.6, 3.0  # between neighbours whose factors differ by one, or more
EDGE = 0.3  # log of the prior's depths, from which on neighbours may be two surfaces
NEAR_M = 0.05
MIN_SEEN = 0.5  # of a cell's pixels, for another picture to have a say
TOLERANCE = 0.05  # log of two depths that agree
TOLERANCE_CELLS = 0.3  # that a spot may be off, where that is more
NUM_WITNESSES = 2  # others that must agree, of those that look there


def sweep_depths(
    images: Tensor,  # (n, 3, H', W') in [-1, 1], n >= 2; best at a half of the frames' size
    cameras: Cameras,  # (n,) of any size
    prior: Tensor,  # (n, h, w) z-depth in metres, > 0
    confidence: Tensor,  # (n, h, w) in [0, 1]: that the prior is right within 25 %
) -> tuple[Tensor, Tensor]:
    """z-depth in metres, 0 where the pictures contradict each other, and confidence: (n, h, w)."""
    prior = prior.clamp(min=NEAR_M)
    features = without_mean(images.float())
    logs = torch.linspace(-REACH, REACH, NUM_FACTORS, device=prior.device)
    cost = torch.stack([
        data_cost(features, cameras, prior, one, logs.exp()) for one in range(len(prior))
    ])  # fmt: skip
    bias = logs.abs()[:, None, None] / spread_of(confidence).clamp(min=MIN_SPREAD)[:, None]
    depth = prior * best_factor(smoothed(cost + PRIOR_WEIGHT * bias, prior), logs)
    agreeing, looking = witnesses(depth, cameras.resized(*prior.shape[1:]))
    kept = agreeing >= looking.clamp(max=NUM_WITNESSES)
    return torch.where(kept, depth, 0.0), torch.where(agreeing > 0, 1.0, confidence)


def without_mean(images: Tensor) -> Tensor:
    pad = MEAN_PX // 2
    around = F.pad(images, (pad, pad, pad, pad), mode="replicate")
    return images - F.avg_pool2d(around, MEAN_PX, 1)


def data_cost(
    features: Tensor,  # (n, 3, H, W)
    cameras: Cameras,  # (n,)
    prior: Tensor,  # (n, h, w)
    one: int,  # the picture whose depth is asked for
    factors: Tensor,  # (s,)
) -> Tensor:
    """(s, h, w): how much less each factor explains what the others show than the best one."""
    size, kernel = features.shape[-2:], features.shape[-2] // prior.shape[1]
    others = [i for i in range(len(features)) if i != one]
    depth = F.interpolate(prior[one].log()[None, None], size, mode="bilinear")[0, 0].exp()
    look = Look(cameras.resized(*size), one, others)
    here, there = features[one], features[others]
    differences, shares = [], []
    for factor in factors:  # one at a time: what is in between stays in the cache
        at, z = look.at(depth * factor)
        shown = F.grid_sample(there, at, padding_mode="border", align_corners=False)
        difference = (shown - here).abs().mean(1).clamp(max=WORST)
        seen = (z > NEAR_M) & (at.abs().amax(-1) < 1)
        shares.append(pooled(seen.float(), kernel))
        differences.append(pooled(difference * seen, kernel))
    share = torch.stack(shares, dim=1)  # (o, s, h, w)
    each = torch.stack(differences, dim=1)
    each = torch.where(share > MIN_SEEN, each / share.clamp(min=MIN_SEEN), torch.inf)
    ordered = each.sort(dim=0).values
    count = ordered.isfinite().sum(0)
    half = torch.arange(len(others), device=depth.device)[:, None, None, None] < (count + 1) // 2
    cost = torch.where(half, ordered, 0.0).sum(0) / half.sum(0).clamp(min=1)
    cost = torch.where(count > 0, cost, WORST)
    return WEIGHT * (cost - cost.min(0, keepdim=True).values)


class Look:
    """Where other views see what lies at some depth behind the pixels of one."""

    def __init__(self, views: Cameras, one: int, others: list[int]) -> None:
        there = views[others]
        relative = (there.camera_from_world @ views.world_from_camera[one]).float()
        rays = views[one].rays().float()
        self._turned = torch.einsum("oij,hwj->ohwi", relative[:, :3, :3], rays)
        self._moved = relative[:, None, None, :3, 3]
        size = rays.new_tensor([views.width, views.height])
        lens = there.intrinsics.float()[:, None, None]
        self._focal, self._centre = 2 * lens[..., :2] / size, 2 * lens[..., 2:] / size - 1

    def at(self, depth: Tensor) -> tuple[Tensor, Tensor]:
        """Of depth (H, W): positions (o, H, W, 2), in [-1, 1] within the pictures, and z (o, H,
        W).
        """
        points = self._turned * depth[..., None] + self._moved
        z = points[..., 2]
        near = 1 / z.clamp(min=NEAR_M)
        return points[..., :2] * near[..., None] * self._focal + self._centre, z


def pooled(maps: Tensor, kernel: int) -> Tensor:
    """(o, H, W) -> (o, h, w): means over cells and a pixel around them."""
    around = F.pad(maps[:, None], (1, 1, 1, 1), mode="replicate")
    return F.avg_pool2d(around, kernel + 2, kernel)[:, 0]


def smoothed(cost: Tensor, prior: Tensor) -> Tensor:
    """(n, s, h, w): the costs of the best paths to each cell from left, right, above and below."""
    total = -3 * cost
    for axis in (-1, -2):
        gap = prior.log().diff(dim=axis).abs()
        hold = torch.exp(-gap / EDGE).movedim(axis, 0)  # (l - 1, n, m)
        lines = cost.movedim(axis, 0)  # (l, n, s, m)
        forth = paths(lines, hold)
        back = paths(lines.flip(0), hold.flip(0)).flip(0)
        total = total + (forth + back).movedim(0, axis)
    return total


def paths(lines: Tensor, hold: Tensor) -> Tensor:
    """(l, n, s, m): the lowest costs of paths along the first axis that end in each entry."""
    found = [lines[0]]
    for line, held in zip(lines[1:], hold[:, :, None], strict=True):
        before = found[-1]
        least = before.min(1, keepdim=True).values
        beside = F.pad(before, (0, 0, 1, 1), value=torch.inf)
        step = torch.minimum(beside[:, :-2], beside[:, 2:]) + STEP_COST * held
        jump = least + JUMP_COST * held
        found.append(line + torch.minimum(torch.minimum(before, step), jump) - least)
    return torch.stack(found)


def best_factor(cost: Tensor, logs: Tensor) -> Tensor:
    """(n, h, w): the factor of least cost (n, s, h, w), between the samples by a parabola."""
    best = cost.argmin(1, keepdim=True).clamp(1, len(logs) - 2)
    left, middle, right = (cost.gather(1, best + i)[:, 0] for i in (-1, 0, 1))
    bend = (left - 2 * middle + right).clamp(min=1e-6)
    shift = (0.5 * (left - right) / bend).clamp(-0.5, 0.5)
    return torch.exp(logs[best[:, 0]] + shift * (logs[1] - logs[0]))


def witnesses(depth: Tensor, views: Cameras) -> tuple[Tensor, Tensor]:
    """How many of the other depth maps agree with each cell of depth (n, h, w), and how many look
    there: (n, h, w) each.
    """
    n, h, w = depth.shape
    cells = depth.new_tensor([w / 2, h / 2])
    around = F.unfold(F.pad(depth.log()[:, None], (1, 1, 1, 1), mode="replicate"), 3)
    around = around.unflatten(2, (h, w))  # (n, 9, h, w)
    counts = []
    for one in range(n):
        others = [i for i in range(n) if i != one]
        look = Look(views, one, others)
        (at, z), (far, _) = look.at(depth[one]), look.at(1e4 * depth[one])
        looking = (z > NEAR_M) & (at.abs() < 1).all(-1)
        u, v = ((at + 1) * cells).long().unbind(-1)
        place = (v.clamp(0, h - 1) * w + u.clamp(0, w - 1)).flatten(1)[:, None]
        there = around[others].flatten(2).gather(2, place.expand(-1, 9, -1)).unflatten(2, (h, w))
        apart = (there - z.clamp(min=NEAR_M).log()[:, None]).abs().amin(1)
        parallax = ((at - far) * cells).norm(dim=-1).clamp(min=1e-3)
        agrees = apart < (TOLERANCE_CELLS / parallax).clamp(min=TOLERANCE)
        counts.append(torch.stack([(looking & agrees).sum(0), looking.sum(0)]))
    agreeing, looking = torch.stack(counts, dim=1)
    return agreeing, looking
