"""Latent spatial memory: latent tokens placed in the world, read by an exact z-buffer splat.

A write lifts every cell to a point and keeps it only where it adds something. A point that repeats
an old one (both lie within one cell's footprint of each other) replaces it if clearly better. If
not it is kept as a second witness, as two frames tell more of a surface than one: each has looked
at it through a grid of its own. It is dropped if there are two that stood near, or one that looked
from the same place; but where it lies beside news it stays, as a seam. Quality is the resolution at
which a surface was seen (nearer and more frontal is better) times the depth's confidence; what was
observed outranks what was generated. From a view aside of the eye that saw it a point is worth less
(worker/projection.py), so what is shown is what was seen from the nearest place. Generated frames
fill only what is uncovered: elsewhere, rims included, they are drawn from what is remembered, so
they are no news, and errors would add up from drawing to drawing. What new views see through loses
its worth at once and dies the second time; what looks different from what an observation shows
loses its worth too, and the next one takes its place. Past its budget the memory gives up its least
valuable points.

Geometry is finer than tokens: each point also keeps the depths of the sixteen parts of its cell,
and a `fine` read puts every part where it lies, and beside it what the second witness shows.

Repeats are found by projection, at the cost of two reads of two surfaces (what stands before a
point may hide it by its footprint alone, and another frame may tell of it, too), rather than by a
spatial index that must be kept up to date.

Axis legend: T frames, h w the latent grid, C channels, n points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from worker.geometry import Cameras, Convention, Lifted, lift, relief, stack_cameras
from worker.memory.appearance import contradicted
from worker.memory.base import (
    Delta,
    Memory,
    MemoryStats,
    ReadMode,
    Readout,
    empty_delta,
    empty_readout,
)
from worker.memory.fusion import Cells, Seen, added, keep_new, looked_at
from worker.memory.points import Points, TokenFormat, stretch
from worker.memory.sight import finer_than, is_fused, part_of, readout_of, see, see_together
from worker.memory.verdicts import REPLACED, SEEN_THROUGH, Evidence, judge
from worker.placed import NUM_PARTS
from worker.projection import SLANT_STEPS, quality_code, relief_code
from worker.splat.cpu import Surface
from worker.splat.plain import Mode

MAX_TOKEN = 2.0**15  # beyond it fixed-point sums could overflow; a sane codec stays under 10
MAX_STRIKES = 2  # views that see through a point until it is gone
STRUCK = 20  # quality codes that the first one costs: a factor of 32


@dataclass(frozen=True)
class LatentMemoryConfig:
    max_points: int = 200_000
    max_bytes: int | None = None  # of the points held; whichever cap is lower counts
    evicted_share: float = 0.02  # of the cap that goes at once, so that it isn't hit often
    better_ratio: float = 2.0  # of qualities, from which a repeat replaces the old point
    observed_gain: float = 1024.0  # the quality of what was observed over what was generated
    two_witnesses: bool = True  # a surface is remembered as two frames saw it, not only one
    corrects_appearance: bool = True  # what two observations contradict is replaced
    has_relief: bool = True  # depths of each cell's parts, for finer looks
    token_format: TokenFormat = "bfloat16"
    convention: Convention = "centre"

    def __post_init__(self) -> None:
        if self.max_points < 1:
            raise ValueError(f"max_points must be at least 1; got {self.max_points}")
        if self.max_bytes is not None and self.max_bytes < 1:
            raise ValueError(f"max_bytes must be at least 1; got {self.max_bytes}")
        if self.better_ratio < 1:
            raise ValueError(f"better_ratio must be at least 1; got {self.better_ratio}")


class LatentMemory:
    def __init__(
        self,
        channels: int,
        grid: tuple[int, int],
        device: str = "cpu",
        cfg: LatentMemoryConfig | None = None,
    ) -> None:
        self._channels, self._grid, self._device = channels, grid, device
        self._cfg = cfg or LatentMemoryConfig()
        offset = 0.5 if self._cfg.convention == "centre" else 0.0
        has_relief = self._cfg.has_relief and self._cfg.convention == "centre"
        parts = NUM_PARTS if has_relief else 0
        self._points = Points(channels, grid, device, self._cfg.token_format, offset, parts)
        self._lost = {"superseded": 0, "carved": 0, "evicted": 0}

    @torch.inference_mode()  # as buffers made in inference mode can't be changed outside of it
    def write(
        self,
        tokens: Tensor,
        depth: Tensor,
        cameras: Cameras,
        source: Sequence[int],
        confidence: Tensor | None = None,
        mask: Tensor | None = None,
        observed: bool = False,
        readout: Readout | None = None,
        images: Tensor | None = None,
    ) -> Delta:
        self._check_write(tokens, cameras, source, confidence)
        tokens, depth = tokens.to(self._device), depth.to(self._device)
        cameras = cameras.to(self._device)
        mask = None if mask is None else mask.to(self._device)
        lifted = lift(depth, cameras, self._grid, mask, convention=self._cfg.convention)
        views = cameras.resized(*self._grid)
        cells = self._cells(lifted, tokens, views, confidence, observed)
        if self._points.num_parts:
            cells = replace(cells, relief=relief_code(relief(depth, lifted.depth, mask)))
        seen = Seen(readout) if readout and not observed else self._looked_at(views)
        front = seen.front
        if not observed:
            cells = replace(cells, valid=cells.valid & (front.coverage == 0))
        ratio, doubted = self._cfg.better_ratio, self._doubted(cells, tokens, front, observed)
        contradicts = (front.coverage == 1) & torch.isin(front.winner, doubted)
        kept, replaces = keep_new(cells, self._points, seen, observed, ratio, contradicts)
        known = torch.where(cells.valid, cells.depth, 0.0)
        evidence = Evidence(known, cells.extent, cells.quality, replaces, observed)
        removed, struck = self._sentence(judge(self._points, views, evidence, ratio))
        struck = torch.cat([struck, doubted[~torch.isin(doubted, removed)]]).unique()
        kept, evicted = self._evict(cells.quality.flatten()[kept], kept, removed, len(source))
        rows = tokens.permute(0, 2, 3, 1).reshape(-1, self._channels)[kept].bfloat16()
        removed, struck = torch.cat([removed, evicted]), struck[~torch.isin(struck, evicted)]
        worth = (self._points["quality"][struck].short() - STRUCK).clamp(min=0).to(torch.uint8)
        delta = replace(
            added(cells, kept, self._points.next_serial, torch.tensor(source), rows),
            removed=self._points.ids_of(removed.sort().values),
            struck=self._points.ids_of(struck),
            struck_quality=worth,
        )
        self.apply(delta)
        return delta

    @torch.inference_mode()
    def forget(self, source: Sequence[int], cells: Tensor | None = None) -> Delta:
        points = self._points
        rows = points.alive.nonzero()[:, 0]
        of = points.frames["source"][points.frame_of(rows)]
        gone = torch.zeros_like(rows, dtype=torch.bool)
        for number, one in enumerate(source):
            chosen = of == one
            if cells is not None:
                chosen &= cells[number].flatten().to(rows.device)[points["cell"][rows].long()]
            gone |= chosen
        rows = rows[gone]
        nothing = empty_delta(self._channels, self._device, points.num_parts)
        delta = replace(nothing, removed=points.ids_of(rows))
        self.apply(delta)
        return delta

    @torch.inference_mode()
    def apply(self, delta: Delta) -> None:
        if delta.tokens.shape[1] != self._channels:
            raise ValueError(
                f"the delta's tokens have {delta.tokens.shape[1]} channels, "
                f"the memory {self._channels}"
            )
        here = Delta(*(getattr(delta, field.name).to(self._device) for field in fields(Delta)))
        self._points.remove(here.removed)
        self._points.strike(here.struck, here.struck_quality)
        self._points.append(here)

    def read(self, cameras: Cameras, mode: ReadMode = "soft") -> Readout:
        if not len(self._points):
            return empty_readout(len(cameras), self._channels, self._grid, self._device, mode)
        views, form = cameras.to(self._device), self._cfg.convention
        if mode != "fine":
            return readout_of(see(self._points, views.resized(*self._grid), mode, form))
        front = readout_of(see(self._points, views.resized(*self._grid), "nearest", form))
        closer = views.resized(*finer_than(self._grid))
        finer = see(self._points, closer, "witnesses", form, in_parts=True)
        return replace(front, finer=readout_of(finer))

    @property
    def on_gpu(self) -> bool:
        return self._points["depth"].is_cuda

    def stats(self) -> MemoryStats:
        points, lost = self._points, self._lost
        return MemoryStats(
            num_points=len(points),
            num_bytes=points.num_bytes,
            num_sources=points.num_sources,
            held_bytes=points.held_bytes,
            **{f"num_{kind}": count for kind, count in lost.items()},
        )

    def state(self) -> dict[str, Tensor]:
        return self._points.live() | {"next_serial": torch.tensor(self._points.next_serial)}

    def _looked_at(self, views: Cameras) -> Seen:
        cfg = self._cfg
        return looked_at(self._points, views, cfg.convention, cfg.two_witnesses)

    def _cells(
        self,
        lifted: Lifted,
        tokens: Tensor,
        views: Cameras,
        confidence: Tensor | None,
        observed: bool,
    ) -> Cells:
        slant = (lifted.recession / lifted.size * SLANT_STEPS).nan_to_num().ceil().clamp(0, 255)
        slant = slant.to(torch.uint8)
        trust = 1.0 if confidence is None else confidence.to(self._device).float()
        gain = self._cfg.observed_gain if observed else 1.0
        quality = gain * trust / (lifted.size * stretch(slant))
        sane = (tokens.abs() <= MAX_TOKEN).all(dim=1)  # false for NaN
        return Cells(
            depth=lifted.depth,
            size=lifted.size,
            slant=slant,
            quality=quality_code(quality.nan_to_num()),
            valid=lifted.valid & sane & quality.isfinite() & (quality > 0),
            views=views,
        )

    def _sentence(self, events: Tensor) -> tuple[Tensor, Tensor]:
        """(m,) rows to remove and (k,) rows to strike, from what new views say."""
        replaced = events[events[:, 1] == REPLACED, 0].unique()
        through, count = events[events[:, 1] == SEEN_THROUGH, 0].unique(return_counts=True)
        strikes = self._points["strikes"][through] + count
        fresh = ~torch.isin(through, replaced)
        carved = through[fresh & (strikes >= MAX_STRIKES)]
        self._lost["superseded"] += len(replaced)
        self._lost["carved"] += len(carved)
        return torch.cat([replaced, carved]), through[fresh & (strikes < MAX_STRIKES)]

    def _doubted(
        self, cells: Cells, tokens: Tensor, seen: Surface | Readout, observed: bool
    ) -> Tensor:
        """(k,) rows whose looks an observation contradicts for the first time: these lose their
        worth, and the next one takes their place.
        """
        if not observed or not self._cfg.corrects_appearance:
            return torch.zeros(0, dtype=torch.int64, device=self._device)
        rows = contradicted(cells, tokens, self._points, seen)
        return rows[self._points["strikes"][rows] == 0]

    def _evict(
        self, quality: Tensor, kept: Tensor, removed: Tensor, num_frames: int
    ) -> tuple[Tensor, Tensor]:
        """Make room: the lowest quality goes, the oldest first, among old and new points.

        Returns the cells still kept and the rows that go besides `removed`.
        """
        points, cap = self._points, self._cap(num_frames)
        excess = len(points) - len(removed) + len(kept) - cap
        if excess <= 0:
            return kept, removed[:0]
        alive = points.alive
        alive[removed] = False
        rows = alive.nonzero()[:, 0]
        victims = _worst(
            torch.cat([points["quality"][rows], quality]),
            excess + int(self._cfg.evicted_share * cap),
        )
        old = victims[victims < len(rows)]
        survives = torch.ones(len(kept), dtype=torch.bool, device=kept.device)
        survives[victims[victims >= len(rows)] - len(rows)] = False
        self._lost["evicted"] += len(old)
        return kept[survives], rows[old]

    def _cap(self, num_frames: int) -> int:
        """Points that may be held once this many frames more are remembered."""
        cfg, points = self._cfg, self._points
        if cfg.max_bytes is None:
            return cfg.max_points
        tables_bytes = points.table_bytes + num_frames * points.bytes_per_frame
        free_bytes = max(0, cfg.max_bytes - tables_bytes)
        return min(cfg.max_points, free_bytes // points.rows.bytes_per_row)

    def _check_write(
        self,
        tokens: Tensor,
        cameras: Cameras,
        source: Sequence[int],
        confidence: Tensor | None,
    ) -> None:
        num_frames = len(source)
        expected = (num_frames, self._channels, *self._grid)
        if tuple(tokens.shape) != expected:
            raise ValueError(f"tokens must be (T, C, h, w) = {expected}; got {tuple(tokens.shape)}")
        if cameras.shape != (num_frames,):
            raise ValueError(f"{num_frames} frames need as many cameras; got {cameras.shape}")
        if min(source, default=0) < 0:
            raise ValueError(f"frame numbers must be >= 0; got {list(source)}")
        shape = (num_frames, *self._grid)
        if confidence is not None and tuple(confidence.shape) != shape:
            raise ValueError(
                f"confidence must be (T, h, w) = {shape}; got {tuple(confidence.shape)}"
            )


def read_together(
    memories: Sequence[Memory], cameras: Sequence[Cameras], mode: ReadMode
) -> list[Readout] | None:
    """Readouts of latent memories on a GPU from one call of the kernels; None where that can't be:
    for other memories or modes, or sessions that differ in number of cameras or in format.
    """
    latent = [one for one in memories if isinstance(one, LatentMemory) and one.on_gpu]
    forms = {
        (one._cfg.token_format, one._cfg.convention, one._grid, one._points.num_parts)
        for one in latent
    }
    num_views = {len(views) for views in cameras}
    if len(latent) < len(memories) or len(forms) != 1 or len(num_views) != 1:
        return None
    one = latent[0]
    if mode == "soft" or not is_fused("nearest", one._cfg.convention):
        return None
    (count,) = num_views

    def seen(grid: tuple[int, int], look: Mode, in_parts: bool = False) -> list[Readout]:
        views = stack_cameras([part.resized(*grid) for part in cameras]).to(one._device)
        points = [memory._points for memory in latent]
        whole = readout_of(see_together(points, views, look, in_parts=in_parts))
        at = range(0, count * len(latent), count)
        return [part_of(whole, slice(first, first + count)) for first in at]

    fronts = seen(one._grid, "nearest")
    if mode != "fine":
        return fronts
    finer = seen(finer_than(one._grid), "witnesses", in_parts=True)
    return [replace(front, finer=fine) for front, fine in zip(fronts, finer, strict=True)]


def _worst(quality: Tensor, count: int) -> Tensor:
    """(count,) where the lowest codes are, the first ones where they tie; one pass, no sort."""
    up_to = torch.bincount(quality.long(), minlength=256).cumsum(0)
    cut = int(torch.searchsorted(up_to, count))
    below = (quality < cut).nonzero()[:, 0]
    return torch.cat([below, (quality == cut).nonzero()[: count - len(below), 0]])
