"""The ledger of points against a plain set of what was added and removed; damaged segments."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from service.errors import SegmentCorrupt
from service.points.ledger import Ledger, colours_of, rank

GRID = (4, 6)
CELLS = GRID[0] * GRID[1]
Tensors = dict[str, Any]


def tensors(serial: int, cells: list[int], removed: list[int] | None = None) -> Tensors:
    """One view at x = its number, which looks forward and sees these cells at depth 2."""
    pose = np.eye(4)
    pose[0, 3] = serial
    return {
        "coverage": np.zeros((1, *GRID), np.float32),
        "delta.ids": serial * CELLS + np.array(cells, np.int64),
        "delta.depth": np.full(len(cells), 2, np.float32),
        "delta.removed": np.array(removed or [], np.int64),
        "delta.serials": np.array([serial], np.int64),
        "delta.source": np.array([serial], np.int32),
        "delta.intrinsics": np.array([[3.0, 3.0, 3.0, 2.0]]),
        "delta.world_from_camera": pose[None],
    }


def filled(*parts: Tensors, max_held: int = 1000) -> Ledger:
    ledger = Ledger(None, max_held)
    for part in parts:
        ledger.read(save(part))
    return ledger


def test_a_point_lies_on_the_ray_through_its_cell() -> None:
    chosen = filled(tensors(0, [0, 23]), tensors(1, [0])).choose(10)
    corner = [(0.5 - 3) / 3 * 2, (0.5 - 2) / 3 * 2, 2]
    expected = [corner, [-corner[0], -corner[1], 2], [1 + corner[0], *corner[1:]]]
    np.testing.assert_allclose(chosen.positions, expected, rtol=1e-6)
    assert (chosen.cell.tolist(), chosen.view.tolist()) == ([0, 23, 0], [0, 0, 1])
    assert chosen.colours is None


@pytest.mark.parametrize("max_held", [700, 300])
def test_what_lives_is_what_was_added_less_what_was_removed(max_held: int) -> None:
    """Also when there is no room for all: then it is an even choice, and the number is known."""
    random, living, ledger = np.random.default_rng(0), set[int](), Ledger(None, max_held)
    for serial in range(60):
        removed = sorted(one for one in living if random.random() < 0.02)
        cells = np.flatnonzero(random.random(CELLS) < 0.8).tolist()
        ledger.read(save(tensors(serial, cells, removed)))
        living -= set(removed)
        living |= {serial * CELLS + cell for cell in cells}
    chosen = ledger.choose(10**6)
    found = chosen.view * CELLS + chosen.cell
    assert chosen.num_remembered == len(living) > 600
    assert np.all(np.diff(found) > 0)
    if max_held >= len(living):
        assert found.tolist() == sorted(living)
    else:
        every = np.array(sorted(living))
        lowest = every[rank(every) <= rank(found).max()]
        assert max_held / 4 < len(found) <= max_held and found.tolist() == lowest.tolist()


def test_a_choice_is_even_and_part_of_every_larger_one() -> None:
    ledger = filled(*(tensors(serial, list(range(CELLS))) for serial in range(50)), max_held=10**6)
    every = ledger.choose(50 * CELLS)
    some = [ledger.choose(count) for count in (1, 100, 600)]
    chosen = [set((one.view * CELLS + one.cell).tolist()) for one in some]
    assert [len(one) for one in chosen] == [1, 100, 600]
    assert chosen[0] < chosen[1] < chosen[2] and len(every.cell) == 50 * CELLS
    assert {one.num_remembered for one in some} == {50 * CELLS}
    per_view = np.bincount(some[2].view, minlength=50)
    per_cell = np.bincount(some[2].cell, minlength=CELLS)
    assert per_view.min() >= 11 and per_view.max() <= 13  # of 24 each, a half is wanted
    assert per_cell.min() >= 20 and per_cell.max() <= 30  # of 50


def test_pixels_carry_their_colours() -> None:
    part = tensors(0, [0, 5]) | {"coverage": np.zeros((1, 2, 3), np.float32)}
    bits = np.array([[0xBF80, 0, 0x3F80], [0x7FC0, 0x4120, 0x3F00]], np.uint16)
    ledger = Ledger(GRID)
    ledger.read(as_bfloat16(part | {"delta.tokens": bits}))
    chosen = ledger.choose(10)
    assert chosen.colours is not None and chosen.colours[0].tolist() == [0, 128, 255]
    assert chosen.colours[1, 1:].tolist() == [255, 191]  # and a NaN is some colour
    assert colours_of(bits).dtype == np.uint8


def as_bfloat16(part: Tensors) -> bytes:
    """numpy has no such type, so its two bytes are written as another's and renamed."""
    data = save(part)
    length = int.from_bytes(data[:8], "little")
    head = data[8 : 8 + length].replace(b'"dtype":"U16"', b'"dtype":"BF16"')
    return len(head).to_bytes(8, "little") + head + data[8 + length :]


BROKEN: dict[str, tuple[Tensors, str]] = {
    "no coverage": ({"coverage": np.zeros(3, np.float32)}, "another form"),
    "another grid": ({"coverage": np.zeros((1, 2, 2), np.float32)}, "do not fit"),
    "ids of another type": ({"delta.ids": np.zeros(2, np.float32)}, "another form"),
    "flat poses": ({"delta.world_from_camera": np.zeros((1, 16))}, "another form"),
    "ids that return": ({"delta.ids": np.array([3, 4])}, "do not fit"),
    "ids out of order": ({"delta.ids": np.array([100, 99])}, "do not fit"),
    "too few depths": ({"delta.depth": np.ones(1, np.float32)}, "do not fit"),
    "two cameras of one frame": ({"delta.intrinsics": np.ones((2, 4))}, "do not fit"),
    "removes what is not there": ({"delta.removed": np.array([7])}, "removes points"),
    "removes below": ({"delta.removed": np.array([-9])}, "removes points"),
    "a frame without a name": ({"delta.serials": np.array([9])}, "does not name"),
    "a view to come": ({"delta.source": np.array([2], np.int32)}, "of views"),
    "a view before all": ({"delta.source": np.array([-1], np.int32)}, "of views"),
    "no lens": ({"delta.intrinsics": np.zeros((1, 4))}, "nowhere"),
    "endless": ({"delta.depth": np.full(2, np.inf, np.float32)}, "nowhere"),
    "no type": ({"delta.removed": np.zeros(2, np.int16)}, "can't be read"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_damaged_segment_is_told(name: str) -> None:
    change, words = BROKEN[name]
    with pytest.raises(SegmentCorrupt, match=words):
        filled(tensors(0, [1, 2, 3]), tensors(1, [1, 2]) | change).choose(10)


def test_a_world_without_points_is_an_empty_choice() -> None:
    for ledger in (Ledger(None), Ledger(GRID), filled(tensors(0, []), tensors(1, []))):
        chosen = ledger.choose(5)
        assert chosen.positions.shape == (0, 3) and chosen.num_remembered == 0
