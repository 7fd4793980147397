"""Compile what runs on a CPU, or load it from the cache, before the first request needs it."""

from __future__ import annotations

import time

import torch

from worker.depth.agreement import comparison
from worker.depth.beside import side_by_side
from worker.geometry import Cameras, cat_cameras, intrinsics_from_fov
from worker.memory.latent import LatentMemory, LatentMemoryConfig

GRID = (4, 6)


def warm_up() -> float:
    """Write and read a small memory of each token format, and compare two pictures; returns the
    seconds that took.

    With the cached machine code this is a fraction of a second, without it 15 to 25.
    """
    started = time.perf_counter()
    intrinsics = intrinsics_from_fov(1.0, *GRID)[None]
    views = Cameras(intrinsics, torch.eye(4, dtype=torch.float64)[None], *GRID)
    depth = torch.ones(1, *GRID)
    forms = (LatentMemoryConfig(), LatentMemoryConfig(token_format="int8"))
    for memory in (LatentMemory(1, GRID, cfg=cfg) for cfg in forms):
        for _ in range(2):
            memory.write(torch.zeros(1, 1, *GRID), depth, views, [0], observed=True)
        memory.read(views, "nearest")
        memory.read(views, "soft")
        memory.read(views, "fine")
    pictures, both = torch.zeros(2, 3, *GRID), cat_cameras([views, views])
    compared = comparison(pictures, both, 0, [1], depth[0], depth.expand(2, *GRID))
    compared.over_cells(depth[0], torch.ones(1), GRID, 0)
    side_by_side(compared.over_others, [depth, depth])
    return time.perf_counter() - started
