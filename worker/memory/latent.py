"""Latent spatial memory: latent tokens placed in the world, read by an exact z-buffer splat.

A write lifts every cell to a point and keeps it only where it adds something. A point that repeats
an old one (both lie within one cell's footprint of each other) replaces it if clearly better and is
dropped if not, so that looking twice costs nothing. Quality is the resolution at which a surface
was seen (nearer and more frontal is better) times the depth's confidence; what was observed
outranks what was generated. Generated frames fill only what is uncovered or known clearly worse.
Repeats are found by projection, at the cost of one read, rather than by a spatial index that must
be kept up to date.

Axis legend: T frames, h w the latent grid, C channels, n points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from worker.geometry import Cameras, Convention, Lifted, lift
from worker.memory.base import Delta, MemoryStats, ReadMode, Readout, empty_readout
from worker.memory.fusion import Cells, keep_new, superseded, sure_winner
from worker.memory.points import COLUMNS, Points, extent
from worker.projection import placement
from worker.splat import Splat, accumulate, splat

MAX_TOKEN = 2.0**15  # beyond it fixed-point sums could overflow; a sane codec stays under 10


@dataclass(frozen=True)
class LatentMemoryConfig:
    max_points: int = 200_000
    evicted_share: float = 0.02  # of max_points that goes at once, so that the cap isn't hit often
    better_ratio: float = 2.0  # of qualities, from which a repeat replaces the old point
    observed_gain: float = 1024.0  # the quality of what was observed over what was generated
    convention: Convention = "centre"

    def __post_init__(self) -> None:
        if self.max_points < 1:
            raise ValueError(f"max_points must be at least 1; got {self.max_points}")
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
        self._points = Points(channels, device)
        self._origin: Tensor | None = None

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
        origin = self._origin
        if origin is None:
            origin = cameras.world_from_camera[0, :3, 3].clone()
        lifted = lift(depth, cameras, self._grid, mask, origin, self._cfg.convention)
        cells = self._cells(lifted, tokens, source, confidence, observed)
        views = cameras.resized(*self._grid).recentred(origin)
        winner = sure_winner(readout or self._splat(views, "nearest"))
        kept, replaces = keep_new(
            cells, views, self._points, winner, observed, self._cfg.better_ratio
        )
        removed = superseded(cells, views, self._points, replaces, self._cfg.better_ratio)
        kept, removed = self._evict(cells.quality.flatten()[kept], kept, removed)
        delta = self._delta(cells, tokens, kept, removed, origin)
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
        if self._origin is None:
            self._origin = here.origin.clone()
        elif not torch.equal(self._origin, here.origin):
            raise ValueError(
                f"the delta's origin {here.origin.tolist()} is not the memory's "
                f"{self._origin.tolist()}: it belongs to another world"
            )
        self._points.remove(here.removed)
        self._points.requalify(here.requalified_ids, here.requalified)
        self._points.append({name: getattr(here, name) for name in COLUMNS})

    def read(self, cameras: Cameras, mode: ReadMode = "soft") -> Readout:
        if self._origin is None:
            return empty_readout(len(cameras), self._channels, self._grid, self._device)
        views = cameras.to(self._device).resized(*self._grid).recentred(self._origin)
        seen = self._splat(views, mode)
        covered = seen.winner >= 0
        row = seen.winner.clamp(min=0)
        points = self._points
        if not len(points):
            return empty_readout(len(cameras), self._channels, self._grid, self._device)
        offset, span = placement(
            points["positions"][row], points["size"][row], points["slant"][row], views
        )
        known = covered[:, None]
        return Readout(
            tokens=accumulate(seen, points["tokens"]),
            coverage=seen.coverage,
            depth=seen.depth,
            winner=seen.winner,
            source=torch.where(covered, points["source"][row].long(), -1),
            quality=torch.where(covered, points["quality"][row], 0.0),
            offset=torch.where(known, offset, 0.0),
            span=torch.where(known, span, 0.0),
        )

    def stats(self) -> MemoryStats:
        points = self._points
        return MemoryStats(
            num_points=len(points),
            num_bytes=len(points) * points.bytes_per_point,
            num_sources=len(points["source"][points.alive].unique()),
        )

    def state(self) -> dict[str, Tensor]:
        origin = torch.full((3,), torch.nan) if self._origin is None else self._origin
        return self._points.live() | {
            "origin": origin.clone(),
            "next_id": torch.tensor(self._points.next_id),
        }

    def _splat(self, views: Cameras, mode: ReadMode) -> Splat:
        points = self._points
        return splat(
            points["positions"],
            points["size"],
            points["quality"],
            points["source"],
            views,
            mode,
            self._cfg.convention,
            points["slant"],
        )

    def _cells(
        self,
        lifted: Lifted,
        tokens: Tensor,
        source: Sequence[int],
        confidence: Tensor | None,
        observed: bool,
    ) -> Cells:
        trust = 1.0 if confidence is None else confidence.to(self._device).float()
        gain = self._cfg.observed_gain if observed else 1.0
        quality = torch.where(lifted.valid, gain * trust / extent(lifted.size, lifted.slant), 0.0)
        sane = (tokens.abs() <= MAX_TOKEN).all(dim=1)  # false for NaN
        frames = torch.tensor(source, dtype=torch.int32, device=self._device)
        return Cells(
            positions=lifted.positions,
            size=lifted.size,
            slant=lifted.slant.half(),
            quality=quality,
            source=frames[:, None, None].expand_as(sane),
            valid=lifted.valid & sane & quality.isfinite() & (quality > 0),
        )

    def _evict(self, quality: Tensor, kept: Tensor, removed: Tensor) -> tuple[Tensor, Tensor]:
        """Make room: the lowest quality goes, the oldest on a tie, among old and new points."""
        points, cap = self._points, self._cfg.max_points
        excess = len(points) - len(removed) + len(kept) - cap
        if excess <= 0:
            return kept, removed
        alive = points.alive
        alive[points.rows_of(removed)] = False
        rows = alive.nonzero()[:, 0]
        worst = torch.cat([points["quality"][rows], quality]).argsort(stable=True)
        victims = worst[: excess + int(self._cfg.evicted_share * cap)]
        old = victims[victims < len(rows)]
        survives = torch.ones(len(kept), dtype=torch.bool, device=kept.device)
        survives[victims[victims >= len(rows)] - len(rows)] = False
        return kept[survives], torch.cat([removed, points["ids"][rows[old]]])

    def _delta(
        self, cells: Cells, tokens: Tensor, kept: Tensor, removed: Tensor, origin: Tensor
    ) -> Delta:
        rows = tokens.permute(0, 2, 3, 1).reshape(-1, self._channels)[kept]
        first = self._points.next_id
        nothing = removed[:0]
        return Delta(
            ids=torch.arange(first, first + len(kept), device=kept.device),
            positions=cells.positions.reshape(-1, 3)[kept],
            tokens=rows.bfloat16(),
            quality=cells.quality.flatten()[kept],
            size=cells.size.flatten()[kept],
            slant=cells.slant.reshape(-1, 3)[kept],
            source=cells.source.flatten()[kept],
            removed=removed.sort().values,
            requalified_ids=nothing,
            requalified=nothing.float(),
            origin=origin,
        )

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
