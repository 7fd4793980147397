"""A step of eight sessions against eight steps of one, with the shipped model."""

from __future__ import annotations

import time
from typing import Any

import torch

from worker.backbones import create_backbone
from worker.engine import Engine, EngineConfig
from worker.geometry import Cameras
from worker.world import Increment, World

HEIGHT, WIDTH, CHUNK = 128, 192, 4
NUM_THREADS = 2


def batches(num_sessions: int = 8, rounds: int = 3, device: str = "cpu") -> dict[str, Any]:
    """How much faster a batch is (the best of some rounds), and how far its results lie from those
    of the same sessions alone: 0 in deterministic mode.
    """
    torch.set_num_threads(NUM_THREADS)
    backbone = create_backbone("mini", device)
    found: dict[str, Any] = {"sessions": num_sessions, "device": device}
    found["threads"] = torch.get_num_threads()
    for name, deterministic in (("fast", False), ("deterministic", True)):
        engine = Engine(backbone, EngineConfig(HEIGHT, WIDTH, device=device))
        engine.cfg = EngineConfig(HEIGHT, WIDTH, deterministic=deterministic, device=device)
        found[name] = _compare(engine, num_sessions, rounds)
    return found


def _compare(engine: Engine, num_sessions: int, rounds: int) -> dict[str, float]:
    together, alone = _worlds(engine, num_sessions), _worlds(engine, num_sessions)
    batch_s, single_s, worst = [], [], 0.0
    for i in range(rounds):
        views = [_views(seed, i) for seed in range(num_sessions)]
        started_s = time.perf_counter()
        batch = engine.step(together, views)
        batch_s.append(time.perf_counter() - started_s)
        started_s = time.perf_counter()
        singles = [
            engine.step([world], [view])[0] for world, view in zip(alone, views, strict=True)
        ]
        single_s.append(time.perf_counter() - started_s)
        if i == 0:  # later the worlds differ by what the first step added
            pairs = zip(batch, singles, strict=True)
            worst = max(_difference(*pair) for pair in pairs)
    return {
        "batch_s": round(min(batch_s), 4),
        "one_by_one_s": round(min(single_s), 4),
        "ratio": round(min(single_s) / min(batch_s), 3),
        "largest_difference": worst,
    }


def _difference(one: Increment, other: Increment) -> float:
    return float((one.latents.float() - other.latents.float()).abs().max())


def _worlds(engine: Engine, count: int) -> list[World]:
    worlds = []
    for seed in range(count):
        generator = torch.Generator().manual_seed(seed)
        coarse = torch.rand(1, 3, HEIGHT // 16, WIDTH // 16, generator=generator)
        smooth = torch.nn.functional.interpolate(coarse, (HEIGHT, WIDTH), mode="bilinear")
        world = engine.open(seed)
        engine.observe(world, (255 * smooth[0].permute(1, 2, 0)).byte(), _views(0, 0, count=1))
        worlds.append(world)
    return worlds


def _views(seed: int, chunk: int, count: int = CHUNK) -> Cameras:
    lens = torch.tensor([150.0, 150.0, WIDTH / 2, HEIGHT / 2], dtype=torch.float64)
    poses = torch.eye(4, dtype=torch.float64).repeat(count, 1, 1)
    poses[:, 2, 3] = 0.02 * seed + 0.05 * (chunk * CHUNK + torch.arange(count))
    return Cameras(lens.expand(count, 4), poses, HEIGHT, WIDTH)
