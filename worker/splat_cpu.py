"""Reads points on a CPU with the compiled kernels, on as many threads as torch may use.

Small reads stay on the calling thread: waking another costs more than it saves.

Axis legend: n points, t cameras, h w the latent grid, c channels.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from worker import splat_kernels as kernels
from worker.geometry import Cameras
from worker.splat import FRONT_RATIO, Mode
from worker.splat_kernels import NOTHING, Array, Blocks, Frames, Rows, Rules, Scene, Views

MIN_PAIRS = 48  # blocks seen by views, below which one thread is faster
MIN_CELLS = 4096  # covered by tokens, likewise

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


@dataclass(frozen=True)
class Tokens:
    """(n, c) bfloat16, or int8 with a scale (n,) float32 per point."""

    values: Tensor
    scale: Tensor | None = None

    def arrays(self) -> tuple[Array, Array, Array]:
        if self.scale is None:
            bits = self.values.view(torch.int16).numpy()
            return bits, np.empty((0, bits.shape[1]), np.int8), np.empty(0, np.float32)
        small = self.values.numpy()
        return np.empty((0, small.shape[1]), np.int16), small, self.scale.numpy()


def views_of(cameras: Cameras) -> Views:
    return Views(
        cameras.world_from_camera.numpy(),
        cameras.intrinsics.numpy(),
        cameras.height,
        cameras.width,
    )


def visible_pairs(blocks: Blocks, frames: Frames, views: Views) -> Array:
    """(p, 2) int32 blocks and the views that may see them."""
    pairs = np.empty((len(blocks.start) * len(views.pose), 2), np.int32)
    return pairs[: kernels.cull(blocks, frames, views, pairs)]


def read(
    rows: Rows,
    blocks: Blocks,
    frames: Frames,
    cameras: Cameras,  # (t,) at the latent grid's size
    mode: Mode,
    tokens: Tokens | None = None,
) -> Surface:
    views = views_of(cameras)
    num_cells = len(views.pose) * views.height * views.width
    parts = _split(visible_pairs(blocks, frames, views), MIN_PAIRS)
    fronts = np.full((len(parts), num_cells), np.inf, np.float32)
    _each(
        lambda i: kernels.nearest_depths(rows, blocks, frames, views, parts[i], fronts[i]),
        len(parts),
    )
    front = fronts.min(axis=0)
    limit = np.where(front == np.inf, np.float32(0), front) * np.float32(1 + FRONT_RATIO)
    rank = np.full((len(parts), num_cells), NOTHING, np.int64)
    distance = np.empty((len(parts), num_cells), np.float32)
    winner, place = np.empty_like(rank), np.empty((len(parts), 5, num_cells), np.float32)

    def choose(i: int) -> None:
        table = (rank[i], distance[i], winner[i], place[i])
        kernels.best_points(rows, blocks, frames, views, parts[i], limit, *table)

    _each(choose, len(parts))
    kernels.merge(rank, distance, winner, place)
    numbers = np.empty((len(views.pose), 7, views.height * views.width), np.float32)
    indices = np.empty((2, num_cells), np.int64)
    kernels.describe(rank[0], winner[0], place[0], limit, numbers, indices)
    channels = 0 if tokens is None else tokens.values.shape[1]
    shown = np.empty((len(views.pose), channels, views.height * views.width), np.float32)
    if tokens is not None and mode == "nearest":
        _nearest(tokens.arrays(), indices[0], shown)
    elif tokens is not None:
        totals = np.zeros((len(parts), num_cells), np.int64)
        found: list[Array] = [np.empty(0)] * len(parts)

        def spread(i: int) -> None:
            found[i] = kernels.tents(
                rows, blocks, frames, views, parts[i], limit, rank[0], totals[i]
            )

        _each(spread, len(parts))
        _blend(tokens.arrays(), found, totals.sum(axis=0), shown)
    grid = (len(views.pose), views.height, views.width)
    known = torch.from_numpy(numbers).reshape(grid[0], 7, *grid[1:])
    row, source = torch.from_numpy(indices).reshape(2, *grid)
    seen = torch.from_numpy(shown).reshape(grid[0], channels, *grid[1:])
    coverage, quality, z = (known[:, i] for i in range(3))
    return Surface(row, source, coverage, z, quality, known[:, 3:5], known[:, 5:7], seen)


def judge(
    rows: Rows, blocks: Blocks, frames: Frames, cameras: Cameras, scene: Scene, rules: Rules
) -> Tensor:
    """(m, 2) int64 rows and kinds, in any order; see worker/memory/verdicts.py."""
    views = views_of(cameras)
    arrays = Scene(*(value.numpy() for value in scene))
    parts = _split(visible_pairs(blocks, frames, views), MIN_PAIRS)
    found: list[Array] = [np.empty((0, 2), np.int64)] * len(parts)

    def look(i: int) -> None:
        found[i] = kernels.judge(rows, blocks, frames, views, parts[i], arrays, rules)

    _each(look, len(parts))
    return torch.from_numpy(np.concatenate(found))


def _nearest(tokens: tuple[Array, ...], winner: Array, shown: Array) -> None:
    parts = _split(np.arange(len(winner)), MIN_CELLS)
    _each(lambda i: kernels.gather(tokens, winner, *_ends(parts[i]), shown), len(parts))


def _blend(tokens: tuple[Array, ...], found: list[Array], total: Array, shown: Array) -> None:
    count = np.zeros(len(total) + 1, np.int64)
    for fragments in found:
        count[1:] += np.bincount(fragments[:, 0], minlength=len(total))
    begin = count.cumsum()
    place, ordered = begin.copy(), np.empty((begin[-1], 2), np.int32)
    for fragments in found:
        kernels.order(fragments, place, ordered)
    parts = _split(np.arange(len(total)), MIN_CELLS)
    _each(
        lambda i: kernels.blend(tokens, begin, ordered, total, *_ends(parts[i]), shown),
        len(parts),
    )


def _ends(part: Array) -> tuple[int, int]:
    return (int(part[0]), int(part[-1]) + 1) if len(part) else (0, 0)


def _split(items: Array, least: int) -> list[Array]:
    """Contiguous parts, one per thread, of at least `least` items."""
    num = max(1, min(torch.get_num_threads(), len(items) // least))
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
