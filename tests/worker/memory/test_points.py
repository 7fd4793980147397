"""Rows: appended, removed, closed up, in the order of their ids; their positions and bounds."""

import copy

import pytest
import torch
from boxes import orbit, room_depth, surface

from worker.geometry import Cameras
from worker.memory import create_memory
from worker.memory.base import Delta, empty_delta
from worker.memory.fusion import Cells, added
from worker.memory.points import MIN_DEAD, Points, quantised, stretch
from worker.projection import BLOCK, quality_code

GRID, CHANNELS = (16, 24), 2
SIZE = GRID[0] * GRID[1]


def frames(views: Cameras, serial: int = 0, step: int = 1) -> Delta:
    """Every `step`-th cell of these views of the room."""
    views = views.resized(*GRID)
    depth = room_depth(views).float()
    flat = torch.zeros_like(depth, dtype=torch.uint8)
    quality = quality_code(torch.ones_like(depth))
    cells = Cells(depth, depth / 20, flat, quality, depth > 0, views)
    kept = torch.arange(0, depth.numel(), step)
    tokens = kept[:, None].bfloat16().expand(-1, CHANNELS)
    return added(cells, kept, serial, 7 + torch.arange(len(views)), tokens)


def filled(num: int, step: int = 1) -> Points:
    points = Points(CHANNELS, GRID, "cpu")
    points.append(frames(orbit(num), step=step))
    return points


def test_rows_survive_growth():
    points, views = Points(CHANNELS, GRID, "cpu"), orbit(20)
    for i in range(0, 20, 4):
        points.append(frames(views[i : i + 4], serial=i))
    assert len(points) == 20 * SIZE and points.next_serial == 20
    assert torch.equal(points.ids_of(torch.arange(len(points))), torch.arange(20 * SIZE))
    assert points.num_sources == 4
    at_once = Points(CHANNELS, GRID, "cpu")
    at_once.append(frames(views))
    assert torch.equal(points.live()["positions"], at_once.live()["positions"])


def test_positions_are_those_of_the_surface():
    views = orbit(3).resized(*GRID)
    truth = surface(views, room_depth(views)).reshape(-1, 3)
    torch.testing.assert_close(filled(3).live()["positions"], truth, rtol=0, atol=1e-6)


def test_removed_rows_are_gone_and_the_others_keep_their_order():
    points = filled(2, step=3)
    ids = points.live()["ids"]
    points.remove(ids[[3, 50, -1]])
    kept = [int(one) for i, one in enumerate(ids) if i not in (3, 50, len(ids) - 1)]
    assert len(points) == len(ids) - 3 and points.live()["ids"].tolist() == kept
    assert points.alive.sum() == len(kept)


def test_closing_up_keeps_ids_positions_and_bounds():
    points = filled(2 * MIN_DEAD // SIZE + 4)
    before = points.live()
    gone = before["ids"] % 5 < 3
    gone |= before["ids"] // SIZE == 2  # a whole frame
    points.remove(before["ids"][gone])
    assert len(points.rows) == len(points) == int((~gone).sum())
    for name, value in points.live().items():
        assert torch.equal(value, before[name][~gone]), name
    assert 2 not in points.frames["serial"].tolist()
    assert points.rows_of(points.live()["ids"]).tolist() == list(range(len(points)))


def test_blocks_belong_to_one_frame_and_bound_their_points():
    points = filled(3)
    starts, counts = points.blocks["start"], points.blocks["length"]
    assert (counts <= BLOCK).all() and int(counts.sum()) == len(points)
    assert torch.equal(starts[1:], starts[:-1] + counts[:-1])
    eye = points.frames["world_from_camera"][points.blocks["frame"].long(), :3, 3]
    for i, (start, count) in enumerate(zip(starts.tolist(), counts.tolist(), strict=True)):
        rows = torch.arange(start, start + count)
        assert (points.frame_of(rows) == points.blocks["frame"][i]).all()
        apart = points.patches(rows).positions() - eye[i]
        assert (apart >= points.blocks["low"][i]).all()
        assert (apart <= points.blocks["high"][i]).all()


def test_struck_rows_change_their_quality_only():
    points = filled(1)
    points.strike(torch.tensor([2, 7]), torch.tensor([5, 6], dtype=torch.uint8))
    assert points["quality"][[2, 7]].tolist() == [5, 6]
    assert points["strikes"].nonzero()[:, 0].tolist() == [2, 7]


@pytest.mark.parametrize("number", [10 * SIZE, 3, -1, 4])
def test_unknown_ids_are_named(number):
    points = filled(1, step=3)
    points.remove(torch.tensor([3]))
    with pytest.raises(ValueError, match=rf"ids not in the memory: \[{number}\]"):
        points.remove(torch.tensor([number]))
    with pytest.raises(ValueError, match="which is empty"):
        Points(2, GRID, "cpu").remove(torch.tensor([number]))


def test_old_frames_are_refused():
    points = filled(3)
    with pytest.raises(ValueError, match="frames must be numbered from 3; got 2"):
        points.append(frames(orbit(1), serial=2))


def test_frames_without_points_use_up_their_numbers():
    points = Points(CHANNELS, GRID, "cpu")
    points.append(frames(orbit(2), step=10 * SIZE))
    assert points.next_serial == 2 and len(points.frames) == 1
    points.append(empty_delta(CHANNELS))
    assert points.next_serial == 2


def test_a_point_of_48_channels_takes_at_most_112_bytes():
    for form, bound in (("bfloat16", 112), ("int8", 64)):
        points = Points(48, (44, 80), "cpu", form)
        depth = torch.ones(4, 44, 80)
        flat = torch.zeros_like(depth, dtype=torch.uint8)
        views = orbit(4).resized(44, 80)
        kept = torch.arange(depth.numel())
        cells = Cells(depth, depth, flat, flat, depth > 0, views)
        tokens = torch.zeros(depth.numel(), 48, dtype=torch.bfloat16)
        points.append(added(cells, kept, 0, 0, tokens))
        assert 48 < points.num_bytes / len(points) <= bound
        assert points.held_bytes >= points.num_bytes


def test_int8_tokens_are_within_half_a_step():
    tokens = torch.randn(500, 48, generator=torch.Generator().manual_seed(0)).bfloat16()
    tokens[7] = 0
    steps, scale = quantised(tokens)
    error = (steps.float() * scale[:, None].float() - tokens.float()).abs()
    bound = tokens.float().abs().amax(1) / 127 * 0.51 + 1e-6
    assert (error.amax(1) <= bound).all()


def test_stretch_is_the_longest_side():
    longest = stretch(torch.tensor([0, 64, 192], dtype=torch.uint8))
    torch.testing.assert_close(longest, torch.tensor([1.0, 2.0, 10.0]).sqrt())


def test_a_copy_is_refused_as_it_would_share_what_it_must_not():
    memory = create_memory("latent", 4, (4, 4), "cpu")
    with pytest.raises(TypeError, match="apply its deltas"):
        copy.deepcopy(memory)
