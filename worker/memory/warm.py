"""Compile what a CPU memory runs, or load it from the cache, before the first request needs it."""

from __future__ import annotations

import time

import torch

from worker.geometry import Cameras, intrinsics_from_fov
from worker.memory.latent import LatentMemory, LatentMemoryConfig

GRID = (4, 6)


def warm_up() -> float:
    """Write and read a small memory of each token format; returns the seconds that took.

    With the cached machine code this is a fraction of a second, without it 10 to 20.
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
    return time.perf_counter() - started
