"""Which points look different from what an observation shows of the same surface.

A token changes with the view by itself (most of it says where the grid lay), so single tokens can't
be compared: on a static scene a twentieth of them differ by more than their own variance. The mean
over 3 x 3 cells does not: of static cells 0.5 % differ by MIN_CHANGE, of a wall that was darkened
by a third or painted anew about half, and their neighbours follow if they differ too. Only
views of about the same resolution are compared, as tokens of another scale say nothing.

Axis legend: T frames, h w the latent grid, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from worker.memory.base import Readout
from worker.memory.fusion import Cells, repeats
from worker.memory.points import Points
from worker.projection import quality_code
from worker.splat.cpu import Surface

MIN_CHANGE = 0.7  # squared difference of mean tokens over a token's mean square
MIN_OWN_CHANGE = 0.2  # likewise, of a single token beside such a place
SAME_QUALITY = 4  # codes: qualities within a factor of two
AROUND = 3  # cells


def contradicted(cells: Cells, tokens: Tensor, points: Points, seen: Surface | Readout) -> Tensor:
    """(k,) rows, ascending, of points that the frames' tokens (T, C, h, w) contradict."""
    if not len(points):
        return torch.zeros(0, dtype=torch.int64, device=tokens.device)
    row = torch.where(seen.coverage == 1, seen.winner, 0)
    alike = cells.valid & repeats(cells, points, seen)
    gap = quality_code(seen.quality).short() - cells.quality.short()
    alike &= gap.abs() <= SAME_QUALITY
    tokens = torch.where(alike[:, None], tokens.float(), 0.0)
    stored = points.tokens_of(row.flatten()).reshape(*row.shape, -1).permute(0, 3, 1, 2)
    change = tokens - torch.where(alike[:, None], stored, 0.0)
    share = _mean_around(alike[:, None].float())
    mean = _mean_around(change) / share.clamp(min=1 / AROUND**2)
    unit = tokens.square().sum(1).sum() / alike.sum().clamp(min=1)
    changed = (mean.square().sum(1) > MIN_CHANGE * unit) & alike
    beside = F.max_pool2d(changed[:, None].float(), AROUND, 1, AROUND // 2)[:, 0] > 0
    rows: Tensor = row[beside & alike & (change.square().sum(1) > MIN_OWN_CHANGE * unit)].unique()
    return rows


def _mean_around(values: Tensor) -> Tensor:
    return F.avg_pool2d(values, AROUND, 1, AROUND // 2)
