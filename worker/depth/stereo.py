"""Depth from several posed pictures of a world that stands still: where poses are known, what one
picture leaves open, the next ones tell.

A sweep over factors on a prior (the depth head's) compares each picture with what the others show
at the depth in question (plane sweep, Collins 1996, with the prior's shape in place of planes).
Together with the prior's own uncertainty the differences are smoothed among cells by semi-global
matching (Hirschmueller 2008), which carries the scale of what was matched on to what has no
texture. Where nothing moves in the picture when depth does (a camera that turns) the prior stays,
and does no harm.

It is done three times. The first sweep takes the pictures without their local mean, so that
exposure says nothing, and the better half of the others, as a surface may be hidden in some. What
several pictures agree on is told to whoever made the prior, whose second guess carries it on to
what nobody could compare. The second sweep knows better, from that depth: where another picture
would see something nearer it has no say, what its surface contradicts costs more, and how much
brighter it is was measured on what both see. So others near and far in time are asked, all that see
a place count, and pictures as they are, whose edges have no halos; in parts of cells, so that a
cell at an edge takes its nearer surface. The third one takes small steps around what the second
one found, knows part by part what hides what, and looks at the pictures in full.

A cell whose depth the other pictures contradict is given up: better a gap that another picture
fills than a surface in mid-air. Two depths agree where they show the same spot, so the less the
camera moves the more they may differ.

Axis legend: n pictures, o others of each, s factors, H W pixels compared, h w cells.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from worker.depth.agreement import WORST, comparison, means
from worker.depth.beside import side_by_side
from worker.depth.head import spread_of
from worker.geometry import NEAR_M, Cameras, Look, enlarged, pool_depth
from worker.placed import in_quarters

SHRINK = 2  # pictures are compared at a half of their size, and at last as they are
NUM_OTHERS = 3  # that a picture is compared with in the first sweep
STRIDES = (1, 2, 4, 8)  # how far off in time are those it is compared with later
MEAN_PX = 9  # of the square whose mean is taken off
WIDE, NUM_WIDE = 0.8, 25  # factors lie within exp(-WIDE) and exp(WIDE)
NARROW, NUM_NARROW = 0.12, 9  # those of the last sweep
WEIGHT = 240.0  # of a difference
PRIOR_WEIGHT = 0.2  # of the log of a factor in units of the prior's spread
MIN_TOLD = 0.05  # share of a picture's cells that must agree with others, to be told
MIN_SPREAD = 0.1
STEP_COST, JUMP_COST = 0.6, 3.0  # between neighbours whose factors differ by one, or more
EDGE = 0.3  # log of the prior's depths, from which on neighbours may be two surfaces
MIN_SEEN = 0.5  # of a cell's pixels, for another picture to have a say
TOLERANCE = 0.05  # log of two depths that agree
TOLERANCE_CELLS = 0.3  # that a spot may be off, where that is more
NUM_WITNESSES = 2  # others that must agree, of those that look there
TELLING_CELLS = 1.0  # of parallax, from which on these shares mean what they say


# (n, h, w) z-depth that pictures agree on with others, 0 for none -> z-depth and confidence, (n, h,
# w) each
GuessAgain = Callable[[Tensor], tuple[Tensor, Tensor]]

# pictures (n, 3, H', W'), their cameras, z-depth of quarters (n, CLOSER h, CLOSER w) and of cells
# (n, h, w) by the sweeps -> (n, h', w') of quarters or of smaller parts
Refine = Callable[[Tensor, Cameras, Tensor, Tensor], Tensor]


class Swept(NamedTuple):
    """z-depth of n pictures in metres, > 0."""

    rough: Tensor  # (n, h, w) by the first sweep, and a second guess
    confidence: Tensor  # (n, h, w) of it
    closer: Tensor  # (n, CLOSER h, CLOSER w) by all three


def sweep_depths(
    images: Tensor,  # (n, 3, H', W') in [-1, 1], n >= 2
    cameras: Cameras,  # (n,) of any size
    prior: Tensor,  # (n, h, w) z-depth in metres, > 0
    confidence: Tensor,  # (n, h, w) in [0, 1]: that the prior is right within 25 %
    guess: GuessAgain | None = None,  # guesses depth once more
    refine: Refine | None = None,  # tells their edges
) -> tuple[Tensor, Tensor, Tensor]:
    """z-depth in metres, 0 where the pictures contradict each other, and confidence: (n, h, w); and
    the depth of their cells' parts, (n, h', w'), of quarters or as `refine` tells it.
    """
    rough, confidence, parts = compare(images, cameras, prior, confidence, guess)
    if refine is not None:
        parts = refine(images, cameras, parts, rough)
    grid = (prior.shape[1], prior.shape[2])
    depth = pool_depth(parts, grid)
    agreeing, looking = witnesses(depth, cameras.resized(*grid))
    kept = agreeing >= looking.clamp(max=NUM_WITNESSES)
    sure = torch.where(agreeing > 0, 1.0, confidence)
    parts = parts * enlarged(kept, (parts.shape[1], parts.shape[2]))
    return torch.where(kept, depth, 0.0), sure, parts


def compare(
    images: Tensor,
    cameras: Cameras,
    prior: Tensor,
    confidence: Tensor,
    guess: GuessAgain | None,
) -> Swept:
    """The sweeps alone; as for `sweep_depths`."""
    prior, pictures = prior.clamp(min=NEAR_M), images.float()
    grid = (prior.shape[1], prior.shape[2])
    wide, narrow = log_factors(WIDE, NUM_WIDE), log_factors(NARROW, NUM_NARROW)
    small = F.avg_pool2d(pictures, SHRINK)
    rough = swept(without_mean(small), cameras, prior, confidence, wide)
    if guess is not None:
        rough, confidence = guessed_again(guess, rough, confidence, cameras.resized(*grid))
    closer, known, trust = in_quarters(rough), rough, in_quarters(confidence)
    for shown, factors in ((small, wide), (pictures, narrow)):
        known = closer = swept(shown, cameras, closer, trust, factors, known)
    return Swept(rough, confidence, closer)


def guessed_again(
    guess: GuessAgain,
    depth: Tensor,  # (n, h, w) by the first sweep
    confidence: Tensor,  # (n, h, w)
    views: Cameras,  # (n,) at grid size
) -> tuple[Tensor, Tensor]:
    """Depth (n, h, w), where pictures do not agree guessed anew by who is told where they do, and
    the confidence of the new guess; pictures that agree on next to nothing stay as they are.
    """
    agreeing, _ = witnesses(depth, views)
    agreed = agreeing >= NUM_WITNESSES
    told = (agreed.float().mean((1, 2)) >= MIN_TOLD)[:, None, None]
    if not bool(told.any()):
        return depth, confidence
    again, its_confidence = guess(torch.where(agreed, depth, 0.0))
    depth = torch.where(told & ~agreed, again, depth)
    return depth, torch.where(told, its_confidence, confidence)


def swept(
    features: Tensor,  # (n, 3, H, W)
    cameras: Cameras,  # (n,)
    prior: Tensor,  # (n, h, w) of any grid
    confidence: Tensor,  # (n, h, w)
    logs: Tensor,  # (s,) of the factors to try
    known: Tensor | None = None,  # (n, h', w') depth by an earlier sweep
) -> Tensor:
    """(n, h, w) z-depth by one sweep."""
    logs, count = logs.to(prior.device), len(prior)
    others = nearest if known is None else around

    def cost_of(one: int) -> Tensor:
        return data_cost(features, cameras, prior, one, others(one, count), logs.exp(), known)

    cost = torch.stack(side_by_side(cost_of, range(count), prior.device))
    bias = logs.abs()[:, None, None] / spread_of(confidence).clamp(min=MIN_SPREAD)[:, None]
    return prior * best_factor(smoothed(cost + PRIOR_WEIGHT * bias, prior), logs)


def log_factors(reach: float, count: int) -> Tensor:
    """(count,) evenly between -reach and reach."""
    return torch.linspace(-reach, reach, count)


def nearest(one: int, count: int) -> list[int]:
    """The NUM_OTHERS others that are nearest in time, ascending."""
    others = [number for number in range(count) if number != one]
    return sorted(sorted(others, key=lambda number: abs(number - one))[:NUM_OTHERS])


def around(one: int, count: int) -> list[int]:
    """Others of all distances in time, more of the near ones, ascending."""
    return [number for number in range(count) if abs(number - one) in STRIDES]


def without_mean(images: Tensor) -> Tensor:
    around = MEAN_PX // 2
    rows, columns = (means(size, size, around).to(images) for size in images.shape[-2:])
    return images - rows @ images @ columns.T


def data_cost(
    features: Tensor,  # (n, 3, H, W)
    cameras: Cameras,  # (n,)
    prior: Tensor,  # (n, h, w)
    one: int,  # the picture whose depth is asked for
    others: list[int],  # those that it is compared with
    factors: Tensor,  # (s,)
    known: Tensor | None = None,  # (n, h', w') depth by an earlier sweep
) -> Tensor:
    """(s, h, w): how much less each factor explains what the others show than the best one."""
    size, grid = features.shape[-2:], (prior.shape[1], prior.shape[2])
    views = cameras.resized(*size)
    if known is None:
        depth = F.interpolate(prior[one].log()[None, None], size, mode="bilinear")[0, 0].exp()
        compared, margin = comparison(features, views, one, others), 1
    else:
        depth = F.interpolate(prior[one][None, None], size)[0, 0]
        telling_px = TELLING_CELLS * size[0] / known.shape[1]
        compared = comparison(features, views, one, others, depth, known, telling_px)
        margin = 0
    costs, share = compared.over_cells(depth, factors, grid, margin)
    each = torch.where(share > MIN_SEEN, costs / share.clamp(min=MIN_SEEN), torch.inf)
    cost = mean_of_least(each, 0.5 if known is None else 1.0)
    return WEIGHT * (cost - cost.min(0, keepdim=True).values)


def mean_of_least(each: Tensor, share: float) -> Tensor:
    """(s, h, w): the mean over this share, rounded up, of the finite ones among (o, s, h, w)."""
    finite = each.isfinite()
    num = (share * finite.sum(0)).ceil()
    if share < 1:
        each = each.sort(dim=0).values
        finite = torch.arange(len(each), device=each.device)[:, None, None, None] < num
    mean = torch.where(finite, each, 0.0).sum(0) / num.clamp(min=1)
    return torch.where(num > 0, mean, WORST)


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
