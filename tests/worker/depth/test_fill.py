"""Holes of measured depth: filled by a backbone whose guess is off by a third everywhere."""

from __future__ import annotations

import torch
from boxes import camera, room_depth
from torch import Tensor

from bench.noop import NoopBackbone
from worker.depth.fill import WORTH, filled
from worker.engine import Engine, EngineConfig
from worker.geometry import Cameras, pool_depth

HEIGHT, WIDTH = 64, 96


class Astray(NoopBackbone):
    def depth(
        self, latents: Tensor, cameras: Cameras, hint: Tensor, pictures: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        truth = pool_depth(room_depth(cameras), tuple(hint.shape[1:]))
        return 1.33 * truth, torch.full_like(truth, 0.5)


def view(x: float = 0.0) -> Cameras:
    return camera((x, 0.0, 0.0), (x, 0.2, 2.0), HEIGHT, WIDTH)


def with_hole(x: float = 0.0) -> tuple[Tensor, Tensor]:
    """Depth (1, H, W) whose upper third is unknown, in zeros and NaN, and the truth."""
    truth = room_depth(view(x)).float()
    depth = truth.clone()
    depth[:, : HEIGHT // 3], depth[:, : HEIGHT // 6] = 0.0, torch.nan
    return depth, truth


def test_a_hole_takes_the_guess_at_the_scale_of_what_was_measured() -> None:
    depth, truth = with_hole()
    latents = torch.zeros(1, 16, HEIGHT // 8, WIDTH // 8)
    whole, confidence = filled(Astray(), latents, view(), depth)
    assert torch.equal(whole[:, HEIGHT // 3 + 8 :], depth[:, HEIGHT // 3 + 8 :])
    apart = (pool_depth(whole, (8, 12)) / pool_depth(truth, (8, 12))).log().abs()
    assert float(apart.max()) < 0.1  # a third off, had it not been aligned
    assert confidence is not None
    assert (confidence[:, 4:] == 1).all() and (confidence[:, :2] == 0.5 * WORTH).all()


def test_nothing_is_made_up_where_nothing_is_missing_or_nothing_is_known() -> None:
    _, truth = with_hole()
    latents = torch.zeros(1, 16, HEIGHT // 8, WIDTH // 8)
    for depth in (truth, 0 * truth):
        whole, confidence = filled(Astray(), latents, view(), depth)
        assert torch.equal(whole, depth) and confidence is None


def test_what_was_measured_replaces_what_was_filled() -> None:
    engine = Engine(Astray(), EngineConfig(height=HEIGHT, width=WIDTH))
    world = engine.open(1)
    picture = torch.zeros(HEIGHT, WIDTH, 3, dtype=torch.uint8)
    depth, truth = with_hole()
    engine.observe(world, picture, view(), depth[0])
    assert (world.memory.read(view(), "nearest").coverage > 0).float().mean() > 0.95
    engine.observe(world, picture, view(0.05), room_depth(view(0.05))[0])
    seen = world.memory.read(view(), "nearest")
    upper = seen.source[0, : HEIGHT // 24]
    assert (upper == 1).float().mean() > 0.8
    error = (seen.depth / pool_depth(truth, engine.grid)).log().abs()[seen.coverage > 0]
    assert float(error.median()) < 0.01


def test_a_mask_hides_holes_as_well() -> None:
    engine = Engine(Astray(), EngineConfig(height=HEIGHT, width=WIDTH))
    world = engine.open(1)
    depth, _ = with_hole()
    mask = ~(depth[0] > 0)
    engine.observe(world, torch.zeros(HEIGHT, WIDTH, 3, dtype=torch.uint8), view(), depth[0], mask)
    rows = world.memory.state()["ids"] // engine.grid[1]
    assert int(rows.min()) >= HEIGHT // 24
