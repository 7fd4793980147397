"""Which cells of new frames are worth remembering.

Old and new meet where the old points project into the new cameras. Frames of one write overlap too,
so each frame is also compared with what the frames before it will add. A surface may be remembered
as one frame saw it, or as two did, since two tell more of it than one.

Axis legend: T frames, h w the latent grid, k kept cells (indices into T * h * w).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from worker.geometry import Cameras, Convention
from worker.memory.base import Delta, Readout
from worker.memory.points import Points, stretch
from worker.memory.sight import see
from worker.memory.verdicts import OUTRANKS, overruled
from worker.projection import quality_code
from worker.splat.cpu import Surface

CENTRED = 0.2  # cells: a patch whose centre is no further from a cell's is in its place


@dataclass(frozen=True)
class Cells:
    """The lifted cells of the frames being written."""

    depth: Tensor  # (T, h, w) float32 z-depth in metres
    size: Tensor  # (T, h, w) float32 metres per cell, across the ray
    slant: Tensor  # (T, h, w) uint8, see Delta
    quality: Tensor  # (T, h, w) uint8, see Delta
    valid: Tensor  # (T, h, w) bool
    views: Cameras  # (T,) at the grid's size
    relief: Tensor | None = None  # (T, h, w, NUM_PARTS) int8, see Delta

    @property
    def extent(self) -> Tensor:
        """(T, h, w) float32 metres: the longest side of each cell's patch."""
        return self.size * stretch(self.slant)

    def __getitem__(self, item: slice) -> Cells:
        return Cells(**{k: v[item] for k, v in vars(self).items() if v is not None})


@dataclass(frozen=True)
class Seen:
    """What a memory shows to the views of the frames being written."""

    front: Surface | Readout
    behind: Surface | None = None  # the next surface; not looked for by generated frames
    other: Surface | None = None  # what another frame tells; None: one frame's word is enough

    def anew(self, points: Points, views: Cameras) -> Seen:
        """The same of other points in other views."""
        if self.behind is None:
            return Seen(see(points, views, "nearest", with_tokens=False))
        return looked_at(points, views, "centre", self.other is not None)


def looked_at(points: Points, views: Cameras, convention: Convention, twice: bool) -> Seen:
    front = see(points, views, "layers", convention, with_tokens=False)
    other = None
    if twice:
        other = see(points, views, "witnesses", convention, with_tokens=False).second
    return Seen(front, front.second, other)


def keep_new(
    cells: Cells,
    points: Points,
    seen: Seen,
    observed: bool,
    better_ratio: float,
    doubted: Tensor,  # (T, h, w) bool: no news, whatever they tell
) -> tuple[Tensor, Tensor]:
    """(k,) cells to add, in frame order, and (T, h, w) bool those that replace what is there."""
    verdict = _verdict(cells, points, seen, observed, better_ratio)
    keep = verdict.worth & cells.valid & ~doubted
    replaces = keep & verdict.replaces
    if observed:
        keep |= seam(cells, seen.front)
    pending = Points(0, points.grid, str(keep.device), offset=points.offset)
    for t in range(len(keep)):
        frame = cells[t : t + 1]
        if t:
            before = seen.anew(pending, frame.views)
            verdict = _verdict(frame, pending, before, observed, better_ratio)
            keep[t] &= verdict.worth[0]
            old = verdict.row[0][keep[t] & verdict.replaces[0]]
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
    relief = torch.zeros(len(kept), 0, dtype=torch.int8, device=kept.device)
    if cells.relief is not None:
        relief = cells.relief.flatten(0, 2)[kept]
    return Delta(
        ids=kept + serial * num_cells,
        depth=cells.depth.flatten()[kept],
        tokens=tokens,
        quality=cells.quality.flatten()[kept],
        slant=cells.slant.flatten()[kept],
        relief=relief,
        removed=nothing,
        struck=nothing,
        struck_quality=nothing.to(torch.uint8),
        serials=torch.arange(serial, serial + num_frames, device=kept.device),
        source=torch.as_tensor(source, dtype=torch.int32, device=kept.device).expand(num_frames),
        intrinsics=cells.views.intrinsics.clone(),
        world_from_camera=cells.views.world_from_camera.clone(),
    )


def seam(cells: Cells, seen: Surface | Readout) -> Tensor:
    """(T, h, w) bool: cells beside those that show what was not known, or known by a rim alone.

    What they repeat covers them from here; from elsewhere a crack would open between it and the
    surface that begins beside it, unless it lies where they do.
    """
    news = (cells.valid & (seen.coverage != 1)).float()[:, None]
    beside = F.max_pool2d(news, 3, stride=1, padding=1)[:, 0] > 0
    return cells.valid & beside & ~in_place(seen)


def in_place(seen: Surface | Readout) -> Tensor:
    """(T, h, w) bool: what is seen there lies where the cell does."""
    return seen.offset.abs().amax(1) <= CENTRED


@dataclass(frozen=True)
class Verdict:
    """(T, h, w) each."""

    worth: Tensor  # bool: to be added, validity aside
    replaces: Tensor  # bool: takes the place of what is known there, if added
    row: Tensor  # int64: what it repeats, or what is seen there


def _verdict(cells: Cells, old: Points, seen: Seen, observed: bool, better_ratio: float) -> Verdict:
    """Only winners that cover their cell count, not rims.

    What a cell repeats may be hidden, if only by the footprint of what stands before it: beside an
    edge it would else be added with every look. Where two frames are to tell of a surface, a cell
    is no news if it repeats both, or if it looks from where the first one did. It is news, though
    it need not replace anything, if what is known was seen from too far aside.
    """
    front, covered, row = seen.front, seen.front.coverage == 1, seen.front.winner
    if not len(old):
        return Verdict(~covered, covered, row)
    again = told = repeats(cells, old, front)
    near = again & ~_worse(front, cells, better_ratio)
    enough = again if seen.other is None else again & in_place(front)
    for second in (seen.behind, seen.other):
        if second is not None:
            also = repeats(cells, old, second)
            row = torch.where(also & ~told, second.winner, row)
            told, enough = told | also, enough | also
            near |= also & ~_worse(second, cells, better_ratio)
    news = again & ~near
    if observed:
        news |= ~enough
    stored = old["quality"][row.clamp(min=0)].short()
    outdone = told & (stored <= overruled(cells.quality, better_ratio))
    outranked = stored <= overruled(cells.quality, OUTRANKS)
    return Verdict(~covered | news | outdone, covered & (outdone | outranked), row)


def _worse(seen: Surface | Readout, cells: Cells, ratio: float) -> Tensor:
    """(T, h, w) bool: what is seen there is, from there, clearly less well known than the cell."""
    return quality_code(seen.quality).short() <= overruled(cells.quality, ratio)


def repeats(cells: Cells, old: Points, seen: Surface | Readout) -> Tensor:
    """(T, h, w) bool: the cell lies on the patch that is seen there, or that one on its own."""
    covered = seen.coverage == 1
    row = torch.where(covered, seen.winner, 0)
    reach = torch.maximum(cells.extent, old.size_of(row) * stretch(old["slant"][row]))
    return covered & (_apart(cells, seen) <= reach)


def _apart(cells: Cells, seen: Surface | Readout) -> Tensor:
    """(T, h, w) float32 metres from each cell's point to the one that is seen there."""
    h, w = cells.depth.shape[1:]
    fx, fy, cx, cy = cells.views.intrinsics.float()[..., None, None].unbind(1)
    u = torch.arange(w, device=fx.device) + 0.5 - cx
    v = torch.arange(h, device=fx.device)[:, None] + 0.5 - cy
    x = ((u + seen.offset[:, 0]) * seen.depth - u * cells.depth) / fx
    y = ((v + seen.offset[:, 1]) * seen.depth - v * cells.depth) / fy
    return (x.square() + y.square() + (seen.depth - cells.depth).square()).sqrt()
