"""Which cells of new frames are worth remembering.

Old and new meet where the old points project into the new cameras. Frames of one write overlap too,
so each frame is also compared with what the frames before it will add.

Axis legend: T frames, h w the latent grid, k kept cells (indices into T * h * w).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from worker.geometry import Cameras
from worker.memory.base import Delta, Readout
from worker.memory.points import Points, stretch
from worker.memory.sight import see
from worker.memory.verdicts import OUTRANKS, overruled
from worker.projection import quality_code
from worker.splat.cpu import Surface


@dataclass(frozen=True)
class Cells:
    """The lifted cells of the frames being written."""

    depth: Tensor  # (T, h, w) float32 z-depth in metres
    size: Tensor  # (T, h, w) float32 metres per cell, across the ray
    slant: Tensor  # (T, h, w) uint8, see Delta
    quality: Tensor  # (T, h, w) uint8, see Delta
    valid: Tensor  # (T, h, w) bool
    views: Cameras  # (T,) at the grid's size

    @property
    def extent(self) -> Tensor:
        """(T, h, w) float32 metres: the longest side of each cell's patch."""
        return self.size * stretch(self.slant)

    def __getitem__(self, item: slice) -> Cells:
        return Cells(*(value[item] for value in vars(self).values()))


def keep_new(
    cells: Cells,
    points: Points,
    seen: Surface | Readout,  # what the memory shows to the same views
    observed: bool,
    better_ratio: float,
) -> tuple[Tensor, Tensor]:
    """(k,) cells to add, in frame order, and (T, h, w) bool those that replace what is there."""
    keep, replaces = _verdict(cells, points, seen, observed, better_ratio)
    keep &= cells.valid
    pending = Points(0, points.grid, str(keep.device), offset=points.offset)
    for t in range(len(keep)):
        frame = cells[t : t + 1]
        if t:
            before = see(pending, frame.views, "nearest", with_tokens=False)
            fresh, again = _verdict(frame, pending, before, observed, better_ratio)
            keep[t] &= fresh[0]
            old = before.winner[0][keep[t] & again[0] & (before.coverage[0] == 1)]
            pending.remove(pending.ids_of(old.unique()))
        pending.append(added(frame, keep[t].flatten().nonzero()[:, 0], t, t))
    kept = (
        pending.ids_of(pending.alive.nonzero()[:, 0]) if len(pending) else pending["depth"].long()
    )
    return kept, keep & replaces


def added(
    cells: Cells, kept: Tensor, serial: int, source: int | Tensor, tokens: Tensor | None = None
) -> Delta:
    """A delta of these cells (k,), with frames numbered from `serial`."""
    num_frames, num_cells = len(cells.depth), cells.depth[0].numel()
    nothing = kept[:0]
    if tokens is None:
        tokens = torch.zeros(len(kept), 0, dtype=torch.bfloat16, device=kept.device)
    return Delta(
        ids=kept + serial * num_cells,
        depth=cells.depth.flatten()[kept],
        tokens=tokens,
        quality=cells.quality.flatten()[kept],
        slant=cells.slant.flatten()[kept],
        removed=nothing,
        struck=nothing,
        struck_quality=nothing.to(torch.uint8),
        serials=torch.arange(serial, serial + num_frames, device=kept.device),
        source=torch.as_tensor(source, dtype=torch.int32, device=kept.device).expand(num_frames),
        intrinsics=cells.views.intrinsics.clone(),
        world_from_camera=cells.views.world_from_camera.clone(),
    )


def _verdict(
    cells: Cells,
    old: Points,
    seen: Surface | Readout,
    observed: bool,
    better_ratio: float,
) -> tuple[Tensor, Tensor]:
    """(T, h, w) bool: worth adding (validity aside), and replacing the old surface if added.

    Only winners that cover their cell count, not rims.
    """
    covered = seen.coverage == 1
    if not len(old):
        return ~covered, covered
    again = repeats(cells, old, seen)
    code = quality_code(seen.quality).short()
    better = code <= overruled(cells.quality, better_ratio)
    outranks = code <= overruled(cells.quality, OUTRANKS)
    worth = again & better
    if observed:
        worth |= ~again
    return ~covered | worth, covered & (again | outranks)


def repeats(cells: Cells, old: Points, seen: Surface | Readout) -> Tensor:
    """(T, h, w) bool: the cell lies on the patch that is seen there, or that one on its own."""
    row = torch.where(seen.coverage == 1, seen.winner, 0)
    reach = torch.maximum(cells.extent, old.size_of(row) * stretch(old["slant"][row]))
    return _apart(cells, seen) <= reach


def _apart(cells: Cells, seen: Surface | Readout) -> Tensor:
    """(T, h, w) float32 metres from each cell's point to the one that is seen there."""
    h, w = cells.depth.shape[1:]
    fx, fy, cx, cy = cells.views.intrinsics.float()[..., None, None].unbind(1)
    u = torch.arange(w, device=fx.device) + 0.5 - cx
    v = torch.arange(h, device=fx.device)[:, None] + 0.5 - cy
    x = ((u + seen.offset[:, 0]) * seen.depth - u * cells.depth) / fx
    y = ((v + seen.offset[:, 1]) * seen.depth - v * cells.depth) / fy
    return (x.square() + y.square() + (seen.depth - cells.depth).square()).sqrt()
