"""Reads points on a CPU with the compiled kernels, on as many threads as torch may use.

Views that come in whole multiples of the threads are shared out, so that nobody waits for anybody;
of the others the points are, and minima merged. A few views at a time share what their points have
in common; more would push each other's tables out of the cache. Small reads stay on the calling
thread: waking another costs more than it saves. None of this changes a bit.

Axis legend: n points, t cameras, h w the latent grid, c channels.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from worker.geometry import Cameras
from worker.splat import kernels
from worker.splat.columns import Array, Blocks, Frames, Rows, Rules, Scene, Stored, Views
from worker.splat.kernels import NOTHING, SPARE
from worker.splat.plain import FRONT_RATIO, TWO, Mode

MIN_PAIRS = 48  # blocks seen by views, below which one thread is faster
MIN_CELLS = 4096  # covered by tokens, likewise
TOGETHER = 4  # views
RATIO = np.float32(1 + FRONT_RATIO)
NO_TOKENS: Stored = (np.empty((0, 0), np.int16), np.empty((0, 0), np.int8), np.empty(0, np.float32))

Items = TypeVar("Items", Array, range)
Points = tuple[Rows, Blocks, Frames]

_pool: ThreadPoolExecutor | None = None


@dataclass(frozen=True)
class Surface:
    """What the cameras see of the points, before any token is touched."""

    winner: Tensor  # (t, h, w) int64 row, -1 where nothing is seen
    source: Tensor  # (t, h, w) int64 frame of the winner, -1
    coverage: Tensor  # (t, h, w) float32
    depth: Tensor  # (t, h, w) float32
    quality: Tensor  # (t, h, w) float32
    offset: Tensor  # (t, 2, h, w) float32, see Splat
    span: Tensor  # (t, 2, h, w) float32
    tokens: Tensor  # (t, c, h, w) float32, c = 0 where none were asked for
    part: Tensor | None = None  # (t, h, w) int64 of the winner, where cells are looked at in parts
    second: Surface | None = None  # of `layers` and `witnesses`, see worker/splat/plain.py


@dataclass(frozen=True)
class Shown:
    """What views show, as the kernels write it."""

    numbers: Array  # (t, 7, h * w) float32 coverage, quality, depth, offset (2), span (2)
    winner: Array  # (t, h * w) int64
    source: Array  # (t, h * w) int64
    part: Array  # (t, h * w) int64, or (t, 0) where cells are looked at as a whole
    tokens: Array  # (t, c, h * w) float32

    def __getitem__(self, views: slice) -> Shown:
        return Shown(*(value[views] for value in vars(self).values()))


def views_of(cameras: Cameras) -> Views:
    return Views(
        cameras.world_from_camera.numpy(),
        cameras.intrinsics.numpy(),
        cameras.height,
        cameras.width,
    )


def visible_pairs(blocks: Blocks, frames: Frames, views: Views) -> Array:
    """(p, 2) int32 blocks, in parts their numbers and parts as one, and views that may see them."""
    pairs: Array = kernels.visible(blocks, frames, views)
    return pairs


def read(
    rows: Rows,
    blocks: Blocks,
    frames: Frames,
    cameras: Cameras,  # (t,)
    mode: Mode,  # of points in parts not `soft`
    tokens: Stored | None = None,
) -> Surface:
    points, views = (rows, blocks, frames), views_of(cameras)
    t, size = len(views.pose), views.height * views.width
    tokens = NO_TOKENS if tokens is None else tokens
    layers = [room_for(t, size, tokens, frames.parts) for _ in range(2 if mode in TWO else 1)]
    threads = torch.get_num_threads()
    share = t // threads if threads > 1 else 0

    def look(first: int, last: int, threads: int) -> None:
        for begin in range(first, last, TOGETHER):
            some = slice(begin, min(begin + TOGETHER, last))
            part = views._replace(pose=views.pose[some], intrinsics=views.intrinsics[some])
            hidden: Array | None = None
            taken: Array | None = None
            for shown in layers:
                hidden = _show(points, part, mode, hidden, taken, tokens, shown[some], threads)
                taken = np.full(len(hidden), -1, np.int64)
                if mode == "witnesses":
                    taken[: len(hidden) - SPARE] = shown[some].source.ravel()

    if share:
        _each(lambda i: look(i * share, (i + 1) * share, 1), threads)
    look(threads * share, t, threads)
    front, *second = (_surface(shown, views.height, views.width) for shown in layers)
    return replace(front, second=second[0]) if second else front


def room_for(num_views: int, size: int, tokens: Stored, parts: int) -> Shown:
    return Shown(
        np.empty((num_views, 7, size), np.float32),
        np.empty((num_views, size), np.int64),
        np.empty((num_views, size), np.int64),
        np.empty((num_views, size if parts > 1 else 0), np.int64),
        np.empty((num_views, tokens[0].shape[1], size), np.float32),
    )


def _show(
    points: Points,
    views: Views,
    mode: Mode,
    hidden: Array | None,  # (t * h * w + SPARE,) limits of the surface in front of this one
    taken: Array | None,  # likewise, the frame whose points of that surface are out; -1: all are
    tokens: Stored,
    shown: Shown,
    threads: int,
) -> Array:
    """Fill `shown` with one surface; returns its limits."""
    rows, blocks, frames = points
    winner, source, part = (one.ravel() for one in (shown.winner, shown.source, shown.part))
    num_cells = len(winner)
    is_small = threads == 1 or len(blocks.start) * len(views.pose) < 2 * MIN_PAIRS
    if is_small and mode != "soft":
        out = (shown.numbers, winner, source, part, shown.tokens)
        limit: Array = kernels.show(rows, blocks, frames, views, RATIO, hidden, taken, tokens, *out)
        return limit
    parts = _split(visible_pairs(blocks, frames, views), MIN_PAIRS, threads)
    front = np.full((len(parts), num_cells + SPARE), np.inf, np.float32)
    _each(
        lambda i: kernels.nearest_depths(
            rows, blocks, frames, views, parts[i], hidden, taken, front[i]
        ),
        len(parts),
    )
    limit = kernels.limits(front, RATIO)
    rank = np.full((len(parts), num_cells), NOTHING, np.int64)
    distance = np.empty((len(parts), num_cells), np.float32)
    best, place = np.empty_like(rank), np.empty((len(parts), num_cells, 5), np.float32)

    def choose(i: int) -> None:
        table = (rank[i], distance[i], best[i], place[i])
        kernels.best_points(rows, blocks, frames, views, parts[i], hidden, taken, limit, *table)

    _each(choose, len(parts))
    kernels.merge(rank, distance, best, place)
    kernels.describe(
        rank[0], best[0], place[0], limit, frames.parts, shown.numbers, winner, source, part
    )
    if mode != "soft":
        _nearest(tokens, winner, shown.tokens, threads)
        return limit
    totals = np.zeros((len(parts), num_cells), np.int64)
    found: list[Array] = [np.empty(0)] * len(parts)

    def spread(i: int) -> None:
        found[i] = kernels.tents(rows, blocks, frames, views, parts[i], limit, rank[0], totals[i])

    _each(spread, len(parts))
    _blend(tokens, found, totals.sum(axis=0), shown.tokens, threads)
    return limit


def _surface(shown: Shown, h: int, w: int) -> Surface:
    t, c, _ = shown.tokens.shape
    known = torch.from_numpy(shown.numbers).view(t, 7, h, w)
    coverage, quality, depth, offset, span = known.split((1, 1, 1, 2, 2), dim=1)
    return Surface(
        winner=torch.from_numpy(shown.winner).view(t, h, w),
        source=torch.from_numpy(shown.source).view(t, h, w),
        coverage=coverage[:, 0],
        depth=depth[:, 0],
        quality=quality[:, 0],
        offset=offset,
        span=span,
        tokens=torch.from_numpy(shown.tokens).view(t, c, h, w),
        part=torch.from_numpy(shown.part).view(t, h, w) if shown.part.size else None,
    )


def judge(
    rows: Rows, blocks: Blocks, frames: Frames, cameras: Cameras, scene: Scene, rules: Rules
) -> Tensor:
    """(m, 2) int64 rows and kinds, in any order; see worker/memory/verdicts.py."""
    views = views_of(cameras)
    arrays = Scene(*(value.numpy() for value in scene))
    threads = torch.get_num_threads()
    parts = _split(visible_pairs(blocks, frames, views), MIN_PAIRS, threads)
    found: list[Array] = [np.empty((0, 2), np.int64)] * len(parts)

    def look(i: int) -> None:
        found[i] = kernels.judge(rows, blocks, frames, views, parts[i], arrays, rules)

    _each(look, len(parts))
    return torch.from_numpy(np.concatenate(found))


def _nearest(tokens: Stored, winner: Array, shown: Array, threads: int) -> None:
    parts = _split(range(len(winner)), MIN_CELLS, threads)
    _each(lambda i: kernels.gather(tokens, winner, *_ends(parts[i]), shown), len(parts))


def _blend(tokens: Stored, found: list[Array], total: Array, shown: Array, threads: int) -> None:
    count = np.zeros(len(total) + 1, np.int64)
    for fragments in found:
        count[1:] += np.bincount(fragments[:, 0], minlength=len(total))
    begin = count.cumsum()
    place, ordered = begin.copy(), np.empty((begin[-1], 2), np.int32)
    for fragments in found:
        kernels.order(fragments, place, ordered)
    parts = _split(range(len(total)), MIN_CELLS, threads)
    _each(
        lambda i: kernels.blend(tokens, begin, ordered, total, *_ends(parts[i]), shown),
        len(parts),
    )


def _ends(part: range) -> tuple[int, int]:
    return part.start, part.stop


def _split(items: Items, least: int, threads: int) -> list[Items]:
    """Contiguous parts, at most one per thread, of at least `least` items."""
    num = max(1, min(threads, len(items) // least))
    return [items[len(items) * i // num : len(items) * (i + 1) // num] for i in range(num)]


def _each(task: Callable[[int], None], num: int) -> None:
    """task(0) .. task(num - 1), side by side."""
    global _pool
    if num == 1:
        return task(0)
    if _pool is None:
        _pool = ThreadPoolExecutor(os.cpu_count(), "splat")
    others = [_pool.submit(task, i) for i in range(1, num)]
    task(0)
    for other in others:
        other.result()
    return None
