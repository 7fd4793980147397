"""Which cells of new frames are worth remembering, and which old points they make superfluous.

Old and new meet where the old points project into the new cameras. Frames of one write overlap too,
so each frame is also compared with what the frames before it will add.

Axis legend: T frames, h w the latent grid, k kept cells (indices into T * h * w), m removed points.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from worker.geometry import Cameras
from worker.memory.base import Readout
from worker.memory.points import Points, extent
from worker.projection import project
from worker.splat import Splat, splat

OUTRANKS = 32.0  # a quality ratio that resolution alone does not reach: observed against generated

SAME_EXTENT = 1.25  # an old point up to this much larger is covered by the new one alone


@dataclass(frozen=True)
class Cells:
    """The lifted cells of the frames being written."""

    positions: Tensor  # (T, h, w, 3) float32
    size: Tensor  # (T, h, w) float32
    slant: Tensor  # (T, h, w, 3) float16
    quality: Tensor  # (T, h, w) float32
    source: Tensor  # (T, h, w) int32
    valid: Tensor  # (T, h, w) bool

    @property
    def extent(self) -> Tensor:
        """(T, h, w) float32 metres."""
        return extent(self.size, self.slant)

    def flat(self) -> Cells:
        """The same cells in one row of T * h * w."""
        return Cells(*(value.flatten(0, 2) for value in vars(self).values()))

    def __getitem__(self, item: int | Tensor) -> Cells:
        return Cells(*(value[item] for value in vars(self).values()))


def keep_new(
    cells: Cells,
    views: Cameras,  # (T,) at the grid's size
    points: Points,
    winner: Tensor,  # (T, h, w) row that the memory shows in each cell, -1 for none
    observed: bool,
    better_ratio: float,
) -> tuple[Tensor, Tensor]:
    """(k,) cells to add, in frame order, and (T, h, w) bool those that replace what is there."""
    old = (points["positions"], points.extent, points["quality"])
    keep, replaces = _verdict(cells, old, winner, observed, better_ratio)
    keep &= cells.valid
    num_cells, flat = keep[0].numel(), cells.flat()
    pending = keep[0].flatten().nonzero()[:, 0]
    for t in range(1, len(keep)):
        added = flat[pending]
        seen = _seen(added, views[t : t + 1])
        old = (added.positions, added.extent, added.quality)
        fresh, repeats = _verdict(cells[t], old, seen, observed, better_ratio)
        keep[t] &= fresh
        pending = _without(pending, seen[keep[t] & repeats])
        pending = torch.cat([pending, keep[t].flatten().nonzero()[:, 0] + t * num_cells])
    return pending, keep & replaces


def _seen(cells: Cells, view: Cameras) -> Tensor:
    """(h, w) which of the cells (n,) the view shows, -1 for none."""
    result = splat(
        cells.positions,
        cells.size,
        cells.quality,
        cells.source,
        view,
        "nearest",
        slant=cells.slant,
    )
    return sure_winner(result)[0]


def sure_winner(seen: Splat | Readout) -> Tensor:
    """(T, h, w) the winners that cover their cell, -1 where only the rim of a surface reaches."""
    return torch.where(seen.coverage == 1, seen.winner, -1)


def superseded(
    cells: Cells, views: Cameras, points: Points, replaces: Tensor, better_ratio: float
) -> Tensor:
    """(m,) ids of the old points on a replaced cell's surface, and of generated ones before it."""
    changed = replaces.flatten(1).any(dim=1).nonzero()[:, 0]
    hits = project(points["positions"], points["size"], views[changed])
    column, line = hits.u.floor().long(), hits.v.floor().long()
    inside = (column >= 0) & (column < views.width) & (line >= 0) & (line < views.height)
    at = (changed[hits.view], line.clamp(0, views.height - 1), column.clamp(0, views.width - 1))
    inside &= replaces[at]
    row, at = hits.point[inside], (at[0][inside], at[1][inside], at[2][inside])
    old_quality, new_quality = points["quality"][row], cells.quality[at]
    reach = torch.maximum(points.extent[row], cells.extent[at])
    apart = (points["positions"][row] - cells.positions[at]).norm(dim=-1)
    depth = _depth_of(cells.positions[at], views, at[0])
    hides = (hits.z[inside] < depth) & (new_quality > OUTRANKS * old_quality)
    gone = ((apart <= reach) | hides) & (new_quality > better_ratio * old_quality)
    gone &= _interior(replaces)[at] | (points.extent[row] <= SAME_EXTENT * cells.extent[at])
    return points["ids"][row[gone].unique()]


def _interior(replaces: Tensor) -> Tensor:
    """Cells whose eight neighbours are replaced too: what lies there needs no old point outside."""
    kept = torch.nn.functional.pad((~replaces).float(), (1, 1, 1, 1), value=1.0)
    return torch.nn.functional.max_pool2d(kept, 3, stride=1) == 0


def _verdict(
    cells: Cells,
    old: tuple[Tensor, Tensor, Tensor],  # positions, extent, quality of the old points
    winner: Tensor,  # like cells.valid
    observed: bool,
    better_ratio: float,
) -> tuple[Tensor, Tensor]:
    """Bool like `winner`: worth adding (validity aside), and replacing the old surface if added."""
    covered = winner >= 0
    if not len(old[0]):
        return ~covered, covered
    row = winner.clamp(min=0)
    position, reach, quality = (value[row] for value in old)
    apart = (cells.positions - position).norm(dim=-1)
    repeats = apart <= torch.maximum(cells.extent, reach)
    better = cells.quality > better_ratio * quality
    outranks = cells.quality > OUTRANKS * quality
    worth = repeats & better
    if observed:
        worth |= ~repeats
    return ~covered | worth, covered & (repeats | outranks)


def _without(pending: Tensor, dropped: Tensor) -> Tensor:
    keep = torch.ones(len(pending), dtype=torch.bool, device=pending.device)
    keep[dropped] = False
    return pending[keep]


def _depth_of(positions: Tensor, views: Cameras, view: Tensor) -> Tensor:
    """(m,) float32 z-depth of positions (m, 3) in the camera of each."""
    row = views.camera_from_world[view, 2].float()
    return (positions * row[:, :3]).sum(dim=-1) + row[:, 3]
