"""The dynamics filter: evidence of motion, and what is kept out of the memory."""

from __future__ import annotations

from dataclasses import replace

import tiny
import torch
from boxes import camera, room_depth
from torch import Tensor

from bench.noop import NoopBackbone, noop_engine
from worker.dynamics import BEFORE_SURFACE, LIKELY, SURE, decide, dynamic_cells, preceding
from worker.dynamics_head import NUM_SCALARS, Before, MotionConfig, MotionHead, evidence, looked_up
from worker.engine import Engine
from worker.geometry import Cameras, cat_cameras
from worker.memory.base import Readout, empty_readout
from worker.pixels import to_uint8
from worker.world import World

H, W = 8, 12


def view(x: float = 0.0, yaw: float = 0.0) -> Cameras:
    return camera((x, 0.0, 0.0), (x + yaw, 0.2, 1.0), H, W)


def ramp(cameras: Cameras) -> Tensor:
    """(1, 3, h, w) latents that are the world position of each cell: a world that stands still."""
    depth = room_depth(cameras)
    rays = cameras.rays() * depth[..., None]
    pose = cameras.world_from_camera
    points = torch.einsum("nij,nhwj->nhwi", pose[:, :3, :3], rays) + pose[:, None, None, :3, 3]
    return points.movedim(-1, 1).float()


def readout_of(depth: Tensor, coverage: float = 1.0) -> Readout:
    empty = empty_readout(len(depth), 3, (H, W), "cpu")
    return replace(empty, depth=depth, coverage=torch.full_like(depth, coverage))


def test_a_still_world_looks_the_same_from_where_the_camera_was() -> None:
    now, then = view(0.3, 0.1), view()
    before = Before(ramp(then), then, torch.tensor([True]))
    moved, seen = looked_up(before, room_depth(now).float(), now)
    assert 0.5 < seen.float().mean() < 1
    inner = seen.clone()
    inner[:, [0, -1]] = False
    error = (moved - ramp(now)).abs().amax(1)
    assert float(error[inner].median()) < 0.02  # the room's corners bend a bilinear ramp


def test_without_a_preceding_view_or_a_memory_there_is_no_disagreement() -> None:
    now = view()
    unknown = Before(ramp(now) + 5, now, torch.tensor([False]))
    depth, zero = room_depth(now).float(), torch.zeros(1, H, W)
    out = evidence(ramp(now), depth, now, unknown, torch.ones(1, 3, H, W), zero, zero)
    assert out.shape == (1, 9 + NUM_SCALARS, H, W) and out.isfinite().all()
    assert torch.equal(out[:, :3], ramp(now)) and not out[:, 3:9].any()
    scalars = out[:, 9:]
    assert not scalars[:, [0, 1, 4, 5, 6]].any() and (scalars[:, 2] == 1).all()


def test_disagreement_in_depth_is_a_bounded_ratio() -> None:
    now = view()
    depth = room_depth(now).float()
    before = Before(ramp(now), now, torch.tensor([True]))
    for factor, expected in ((1.0, 0.0), (2.0, -0.6931), (1000.0, -1.0)):
        out = evidence(
            ramp(now), depth, now, before, ramp(now), torch.ones_like(depth), factor * depth
        )
        assert torch.allclose(out[:, 9 + 4], torch.tensor(expected), atol=1e-3)


def test_the_sky_has_no_depth_and_breaks_nothing() -> None:
    now, then = view(0.2), view()
    before = Before(ramp(then), then, torch.tensor([True]))
    nothing = torch.zeros(1, H, W)
    out = evidence(ramp(now), nothing, now, before, ramp(now), nothing, nothing)
    assert out.isfinite().all() and not out[:, 9 + 2].any()


def test_the_head_gives_a_logit_per_cell_of_any_grid() -> None:
    head = tiny.randomise(MotionHead(MotionConfig(4, (8, 16), 1)))
    for h, w in ((8, 12), (7, 9), (24, 40)):
        x = torch.randn(2, 12 + NUM_SCALARS, h, w)
        assert head(x).shape == (2, h, w)
    fresh = MotionHead(MotionConfig(4, (8, 16), 1))
    assert (fresh(torch.zeros(1, 12 + NUM_SCALARS, 8, 8)).sigmoid() < SURE).all()


def test_sure_cells_are_masked_and_likely_ones_with_a_second_witness() -> None:
    likely = (SURE + LIKELY) / 2
    probability = torch.zeros(1, H, W)
    probability[0, 1, 1], probability[0, 1, 2], probability[0, 6, 6] = 0.9, likely, likely
    depth = torch.full((1, H, W), 2.0)
    mask = decide(probability, depth, readout_of(depth))
    assert mask.sum() == 2 and mask[0, 1, 1] and mask[0, 1, 2]
    further = depth / BEFORE_SURFACE + 0.1  # the memory shows something behind
    mask = decide(probability, depth, readout_of(further))
    assert mask.sum() == 3 and mask[0, 6, 6]
    assert decide(probability, 0 * depth, readout_of(further)).sum() == 2  # unknown is not before


class Seeing(NoopBackbone):
    """Says that whatever stands in the left half moves."""

    sees_motion = True

    def motion(self, evidence: Tensor) -> Tensor:
        probability = torch.zeros_like(evidence[:, 0])
        probability[..., : evidence.shape[-1] // 2] = 1.0
        return probability


def begun(backbone: NoopBackbone) -> tuple[Engine, World, Cameras]:
    engine = noop_engine(backbone)
    size = (engine.cfg.height, engine.cfg.width)
    return engine, engine.open(seed=1), camera((0.0, 0.0, 0.0), (0.0, 0.2, 1.0), *size)


def test_the_clients_mask_and_the_head_are_joined() -> None:
    engine, world, camera_ = begun(Seeing())
    latents = torch.zeros(1, 16, *engine.grid)
    depth = torch.full((1, engine.cfg.height, engine.cfg.width), 2.0)
    readout = world.memory.read(camera_)
    alone = dynamic_cells(engine.backbone, world, latents, depth, camera_, readout)
    w = engine.grid[1]
    assert alone.shape == (1, *engine.grid) and alone[..., : w // 2].all()
    assert not alone[..., w // 2 :].any()
    given = torch.zeros(1, engine.cfg.height, engine.cfg.width, dtype=torch.bool)
    given[:, 0, -1] = True
    both = dynamic_cells(engine.backbone, world, latents, depth, camera_, readout, given)
    assert both.shape == given.shape and both[:, 0, -1].all()
    assert both[..., : engine.cfg.width // 2].all() and int(both.sum()) == both.numel() // 2 + 1


def test_what_moves_does_not_enter_the_memory() -> None:
    def points(backbone: NoopBackbone) -> int:
        engine, world, camera_ = begun(backbone)
        picture = to_uint8(torch.zeros(1, 3, engine.cfg.height, engine.cfg.width))[0]
        depth = torch.full((engine.cfg.height, engine.cfg.width), 2.0)
        engine.observe(world, picture, camera_, depth)
        return world.memory.stats().num_points

    assert points(Seeing()) * 2 == points(NoopBackbone()) > 0


def test_each_view_of_a_chunk_follows_the_one_before_it() -> None:
    engine, world, camera_ = begun(NoopBackbone())
    views = cat_cameras([camera_, camera_, camera_]).resized(*engine.grid)
    latents = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 16, *engine.grid)
    before = preceding(world, latents, views)
    assert before.known.tolist() == [False, True, True]
    assert before.latents[1:, 0, 0, 0].tolist() == [0.0, 1.0]
    picture = to_uint8(torch.zeros(1, 3, engine.cfg.height, engine.cfg.width))[0]
    engine.observe(world, picture, camera_)
    before = preceding(world, latents, views)
    assert before.known.all() and torch.equal(before.latents[0], world.latents[-1].float())
