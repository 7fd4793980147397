"""What later views see through is gone; what was seen truly stays."""

import pytest
import torch
from boxes import camera, orbit, room_depth
from torch import Tensor

from worker.geometry import Cameras, cat_cameras
from worker.memory.latent import LatentMemory, LatentMemoryConfig

GRID, CHANNELS = (16, 24), 4
THING = ((0.0, 0.2, 0.3), (0.4, 0.4, 0.3))  # hangs in the middle of the room


def tokens(num: int, seed: int = 0) -> Tensor:
    return torch.randn(num, CHANNELS, *GRID, generator=torch.Generator().manual_seed(seed))


def views(*eyes: tuple[float, float, float]) -> Cameras:
    return cat_cameras([camera(eye, (0.0, 0.2, 1.0)) for eye in eyes])


def write(memory: LatentMemory, where: Cameras, first: int, things: list, observed: bool = True):
    numbers = range(first, first + len(where))
    depth = room_depth(where, things)
    return memory.write(tokens(len(where), first), depth, where, numbers, observed=observed)


def on_the_thing(memory: LatentMemory, observed_by: int) -> int:
    """Points of one frame within the thing's place."""
    state = memory.state()
    centre, half = (torch.tensor(value, dtype=torch.float64) for value in THING)
    inside = ((state["positions"] - centre).abs() <= half + 0.05).all(-1)
    return int((inside & (state["source"] == observed_by)).sum())


def test_a_thing_that_moved_away_is_gone_after_two_views():
    memory, restored = LatentMemory(CHANNELS, GRID), LatentMemory(CHANNELS, GRID)
    deltas = [write(memory, views((0.0, 0.0, -1.5)), 0, [THING])]
    before = on_the_thing(memory, 0)
    assert before > 20
    deltas.append(write(memory, views((0.1, 0.0, -1.5)), 1, []))
    assert len(deltas[-1].struck) >= 0.99 * before
    deltas.append(write(memory, views((-0.1, 0.0, -1.4)), 2, []))
    assert on_the_thing(memory, 0) <= 0.01 * before
    seen = memory.read(views((0.0, 0.0, -1.5)), "nearest")
    assert (seen.depth[seen.coverage == 1] > 2).float().mean() > 0.9  # the wall behind it
    assert memory.stats().num_carved >= 0.99 * before
    for delta in deltas:
        restored.apply(delta)
    for name, value in memory.state().items():
        assert torch.equal(restored.state()[name], value), name


def test_two_views_of_one_write_are_enough():
    memory = LatentMemory(CHANNELS, GRID)
    write(memory, views((0.0, 0.0, -1.5)), 0, [THING])
    before = on_the_thing(memory, 0)
    write(memory, views((0.1, 0.0, -1.5), (-0.1, 0.0, -1.4)), 1, [])
    assert on_the_thing(memory, 0) <= 0.01 * before


def test_one_view_leaves_the_thing_but_makes_it_worth_little():
    memory = LatentMemory(CHANNELS, GRID)
    write(memory, views((0.0, 0.0, -1.5)), 0, [THING])
    before, known = on_the_thing(memory, 0), memory.state()
    delta = write(memory, views((0.1, 0.0, -1.5)), 1, [])
    assert on_the_thing(memory, 0) == before
    old, new = known["quality"], memory.state()["quality"][: len(known["ids"])]
    struck = torch.isin(known["ids"], delta.struck)
    assert struck.sum() >= 0.99 * before
    assert torch.equal(new[struck] * 32, old[struck]) and torch.equal(new[~struck], old[~struck])


def test_what_is_imagined_strikes_nothing_that_was_observed():
    memory = LatentMemory(CHANNELS, GRID)
    write(memory, views((0.0, 0.0, -1.5)), 0, [THING])
    before = memory.state()
    for first in (1, 2, 3):
        delta = write(memory, views((0.1, 0.0, -1.5)), first, [], observed=False)
        assert len(delta.struck) == len(delta.removed) == 0
    after = memory.state()
    assert torch.equal(after["quality"][: len(before["ids"])], before["quality"])


def test_masked_cells_say_nothing_about_what_is_before_them():
    memory, where = LatentMemory(CHANNELS, GRID), views((0.0, 0.0, -1.5))
    write(memory, where, 0, [THING])
    everything = torch.ones(1, *GRID, dtype=torch.bool)
    for first in (1, 2):
        numbers = [first]
        delta = memory.write(
            tokens(1), room_depth(where), where, numbers, mask=everything, observed=True
        )
        assert len(delta.struck) == len(delta.removed) == len(delta.ids) == 0


def test_true_surfaces_are_never_carved():
    memory, ring = LatentMemory(CHANNELS, GRID), orbit(12)
    for lap in range(3):
        for i in range(0, 12, 4):
            write(memory, ring[i : i + 4], 12 * lap + i, [])
    stats = memory.stats()
    assert stats.num_carved <= 0.01 * stats.num_points


@pytest.mark.parametrize("max_bytes", [4_000, 20_000])
def test_a_budget_in_bytes_is_never_exceeded(max_bytes):
    cfg = LatentMemoryConfig(max_bytes=max_bytes)
    memory, restored = (LatentMemory(CHANNELS, GRID, cfg=cfg) for _ in range(2))
    for i, where in enumerate(orbit(6)[[k]] for k in range(6)):
        restored.apply(write(memory, where, i, []))
        assert 0 < memory.stats().num_bytes <= max_bytes
    assert memory.stats().num_evicted > 0
    for name, value in memory.state().items():
        assert torch.equal(restored.state()[name], value), name
