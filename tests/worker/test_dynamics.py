"""The dynamics filter: a thing that moves before a wall, told by comparing views of it."""

from __future__ import annotations

import pytest
import tiny
import torch
from boxes import camera, room_depth, surface
from torch import Tensor
from torch.nn import functional as F

from bench.noop import NoopBackbone
from worker.dynamics import SURE, kept_out, moving_cells
from worker.dynamics_head import MotionConfig, MotionHead, all_others, compared, seen_by
from worker.engine import Engine, EngineConfig
from worker.geometry import Cameras, cat_cameras, pool_depth
from worker.world import MOTION_WINDOW, PATIENCE, World

HEIGHT, WIDTH = 96, 160
SMALL = MotionConfig(look=4, pair=8, widths=(8, 16, 16), num_blocks=1)


def view(x: float = 0.0) -> Cameras:
    return camera((x, 0.0, 0.0), (x, 0.0, 2.0), HEIGHT, WIDTH)


def box(x: float) -> list[tuple[tuple[float, float, float], tuple[float, float, float]]]:
    return [((x, 0.5, 1.8), (0.25, 0.4, 0.1))]


class Doubting(NoopBackbone):
    """Says that what moves is where the last other view's depth disagrees."""

    sees_motion = True

    def motion(self, pictures: Tensor, depth: Tensor, cameras: Cameras) -> Tensor:
        others = all_others(len(depth)).to(depth.device)
        views = cameras.to(depth.device).resized(*depth.shape[1:])
        at, z = seen_by(depth, views, others)
        planes = compared(torch.zeros_like(depth)[:, None], depth, others, at, z, others >= 0)
        apart = (planes[:, :, -3].abs() > 0.1).float().amax(1)
        return F.max_pool2d(apart[:, None], 2)[:, 0]


def walked(places: list[float], backbone: NoopBackbone | None = None, step_m: float = 0.3):
    """A world that has seen a box at these places, from a camera that goes sideways."""
    engine = Engine(backbone or Doubting(), EngineConfig(height=HEIGHT, width=WIDTH))
    world = engine.open(1)
    for i, x in enumerate(places):
        observe(engine, world, i * step_m, x)
    return engine, world


def observe(engine: Engine, world: World, eye: float, place: float, **more: Tensor) -> None:
    depth = room_depth(view(eye), box(place))
    waves = torch.tensor([[7.0, 5, 9], [6, 9, 4], [9, 7, 2]], dtype=torch.float64)
    picture = (127 + 100 * (surface(view(eye), depth)[0] @ waves).sin()).byte()
    engine.observe(world, picture, view(eye), depth[0], **more)


def on_box(engine: Engine, eye: float, place: float) -> Tensor:
    """(h, w) bool: cells that show the box."""
    depth = pool_depth(room_depth(view(eye), box(place)), engine.grid)
    return (depth > 0)[0] & (depth < 0.95 * pool_depth(room_depth(view(eye)), engine.grid))[0]


def points_on_box(engine: Engine, world: World, source: int, eye: float, place: float) -> int:
    state = world.memory.state()
    own = state["ids"][state["source"] == source] % (engine.grid[0] * engine.grid[1])
    return int(on_box(engine, eye, place).flatten()[own].sum())


def test_points_are_looked_up_where_the_other_camera_saw_them() -> None:
    views = cat_cameras([view(), view(0.3)]).resized(24, 40)
    depth = room_depth(views)
    at, z = seen_by(depth.float(), views, all_others(2))
    planes = compared(
        torch.zeros(2, 1, 24, 40), depth.float(), all_others(2), at, z, all_others(2) >= 0
    )
    ratio, measured, inside = planes[:, 0, -3:].unbind(1)
    assert 0.5 < inside.mean() < 1 and torch.equal(measured, inside)
    assert float(ratio.abs().median()) < 0.01 and float((ratio.abs() > 0.1).float().mean()) < 0.05


def test_what_has_no_depth_is_compared_by_direction_alone() -> None:
    views = cat_cameras([view(), view(0.3)]).resized(24, 40)
    sky = torch.zeros(2, 24, 40)
    at, z = seen_by(sky, views, all_others(2))
    planes = compared(torch.randn(2, 1, 24, 40), sky, all_others(2), at, z, all_others(2) >= 0)
    assert planes.isfinite().all() and not planes[:, :, -3:-1].any() and planes[:, :, -1].any()


@pytest.mark.parametrize("num", [1, 2, 4])
@pytest.mark.parametrize("grid", [(6, 10), (7, 9)])
def test_the_head_gives_a_logit_per_cell(num: int, grid: tuple[int, int]) -> None:
    h, w = grid
    head = tiny.randomise(MotionHead(SMALL))
    views = cat_cameras([view(0.1 * i) for i in range(num)])
    inputs = torch.randn(num, 3, 4 * h, 4 * w), torch.rand(num, 2 * h, 2 * w) + 1
    known = torch.ones(num, num - 1, dtype=torch.bool)
    assert head(*inputs, views, all_others(num), known).shape == (num, h, w)
    assert (MotionHead(SMALL)(*inputs, views, all_others(num), known).sigmoid() < SURE).all()


def test_views_that_are_not_there_say_nothing() -> None:
    head = tiny.randomise(MotionHead(SMALL))
    views = cat_cameras([view(0.1 * i) for i in range(3)])
    inputs = torch.randn(3, 3, 24, 40), torch.rand(3, 12, 20) + 1
    two = all_others(3)
    known = torch.tensor([[True, False]] * 3)
    some = head(*inputs, views, two, known)
    alone = head(*inputs, views, two[:, :1], known[:, :1])
    assert torch.allclose(some, alone, atol=1e-5)


def test_the_order_of_the_others_does_not_matter() -> None:
    head = tiny.randomise(MotionHead(SMALL))
    views = cat_cameras([view(0.1 * i) for i in range(4)])
    inputs = torch.randn(4, 3, 24, 40), torch.rand(4, 12, 20) + 1
    known = torch.ones(4, 3, dtype=torch.bool)
    one, other = (
        head(*inputs, views, index, known) for index in (all_others(4), all_others(4).flip(1))
    )
    assert torch.allclose(one, other, atol=1e-5)


def test_each_view_has_all_others() -> None:
    assert all_others(3).tolist() == [[1, 2], [0, 2], [0, 1]]
    assert all_others(1).shape == (1, 0)


def test_a_single_picture_hides_nothing() -> None:
    engine, world = walked([0.0])
    assert world.memory.stats().num_points == engine.grid[0] * engine.grid[1]
    assert not moving_cells(engine.backbone, world.sights).any()


def test_what_moves_does_not_enter_and_what_had_entered_is_taken_out() -> None:
    engine, world = walked([-0.5])
    assert points_on_box(engine, world, 0, 0.0, -0.5) > 10
    observe(engine, world, 0.3, 0.6)
    assert points_on_box(engine, world, 0, 0.0, -0.5) == 0
    assert points_on_box(engine, world, 1, 0.3, 0.6) == 0
    _, blind = walked([-0.5, 0.6], NoopBackbone())
    assert points_on_box(engine, blind, 1, 0.3, 0.6) > 10


def test_what_moved_long_ago_is_known_still() -> None:
    """Older pictures are placed anew as well: what moved in them must stay out."""
    sights = []
    for i in range(2 * MOTION_WINDOW):
        engine, world = walked([])
        observe(engine, world, 0.0, 0.6 if i else -0.5)
        sights += world.sights
    moving = moving_cells(Doubting(), sights).flatten(1).any(1)
    assert moving.tolist() == MOTION_WINDOW * [True] + MOTION_WINDOW * [False]


def test_a_world_in_which_things_move_is_replayed_bit_for_bit() -> None:
    engine = Engine(Doubting(), EngineConfig(height=HEIGHT, width=WIDTH))
    world, again = engine.open(1), engine.open(1)
    for i, x in enumerate([-0.5, 0.6, 0.0, -0.2]):
        depth = room_depth(view(0.3 * i), box(x))
        picture = torch.full((HEIGHT, WIDTH, 3), 40 * i, dtype=torch.uint8)
        engine.replay(again, engine.observe(world, picture, view(0.3 * i), depth[0]))
    for key, value in world.memory.state().items():
        assert torch.equal(value, again.memory.state()[key]), key
    both = [moving_cells(engine.backbone, one.sights) for one in (world, again)]
    assert both[0].any() and torch.equal(*both)


def test_what_stays_where_it_was_put_is_remembered_after_a_while() -> None:
    """Before a camera that rests, too."""
    for places, step_m in ((2 * MOTION_WINDOW, 0.2), (5 * PATIENCE, 0.0)):
        engine, world = walked([-0.5] + places * [0.6], step_m=step_m)
        seen = world.memory.read(view(0.0), "nearest")
        assert (seen.depth[0][on_box(engine, 0.0, 0.6)] < 1.9).float().mean() > 0.8


def test_a_clients_mask_and_what_was_found_are_joined() -> None:
    moving = torch.zeros(1, 4, 6, dtype=torch.bool)
    moving[0, 0, 0] = True
    assert torch.equal(kept_out(moving, None), moving)
    given = torch.zeros(8, 12, dtype=torch.bool)
    given[7, 11] = True
    both = kept_out(moving, given)
    assert both.shape == (1, 8, 12) and int(both.sum()) == 5 and both[0, 7, 11]


def test_guessed_and_measured_depth_are_compared_with_each_other() -> None:
    engine, world = walked([-0.5])
    picture = torch.zeros(HEIGHT, WIDTH, 3, dtype=torch.uint8)
    engine.observe(world, picture, view(0.6))
    assert [sight.guess is None for sight in world.sights] == [True, False]
    moving = moving_cells(engine.backbone, world.sights)
    assert moving.shape == (2, *engine.grid)
    observe(engine, world, 1.2, -0.5)
    assert len(world.sights) == 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_observations_are_compared_on_a_gpu() -> None:
    engine = Engine(Doubting(), EngineConfig(height=HEIGHT, width=WIDTH, device="cuda"))
    world = engine.open(1)
    picture = torch.zeros(HEIGHT, WIDTH, 3, dtype=torch.uint8)
    for i, has_depth in enumerate((True, False, False, True)):
        depth = room_depth(view(0.6 * i), box(0.3 * i))[0] if has_depth else None
        engine.observe(world, picture, view(0.6 * i), depth)
    assert {sight.picture(engine.backbone).device.type for sight in world.sights} == {"cuda"}
