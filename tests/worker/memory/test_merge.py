"""A memory restored from merged deltas is the memory that wrote them, and goes on as it does."""

from dataclasses import replace

import pytest
import torch
from boxes import camera, orbit, room_depth
from token_grids import CHANNELS, GRID, tokens

from worker.memory.base import Delta
from worker.memory.latent import LatentMemory, LatentMemoryConfig
from worker.memory.merge import merged
from worker.memory.points import in_full
from worker.placed import CLOSER, FINER


def history(memory: LatentMemory) -> list[Delta]:
    """Observations, generated frames and a wall that was not where it was first seen: points are
    added, superseded, struck, carved away and evicted.
    """
    deltas, views = [], orbit(7)
    near = camera((0, 0, -1.5), (0, 0, 2.5))
    for i, scale in enumerate((1.0, 0.6, 1.0, 1.0, 1.0, 1.0, 1.0)):
        view = near if i < 5 else views[i : i + 1]
        depth = scale * room_depth(view)
        deltas.append(memory.write(tokens(1, seed=i), depth, view, [i], observed=i % 3 != 2))
    return deltas


@pytest.mark.parametrize("limit", [{}, {"max_points": 600}, {"max_bytes": 15_000}])
def test_merged_deltas_make_the_same_memory_bit_for_bit(limit):
    cfg = LatentMemoryConfig(**limit)
    whole, restored = (LatentMemory(CHANNELS, GRID, cfg=cfg) for _ in range(2))
    deltas = history(whole)
    assert sum(len(one.removed) for one in deltas) > 0
    few = merged(deltas)
    assert len(few) <= 2
    for delta in few:
        restored.apply(delta)
    for name, value in whole.state().items():
        assert torch.equal(value, restored.state()[name]), name
    assert whole.stats().num_bytes == restored.stats().num_bytes
    view = orbit(3)
    for mode in ("nearest", "soft"):
        one, other = whole.read(view, mode), restored.read(view, mode)
        for name in ("tokens", "coverage", "depth"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name
    last = [
        memory.write(tokens(3, seed=9), room_depth(view), view, [7, 8, 9])
        for memory in (whole, restored)
    ]
    assert torch.equal(last[0].ids, last[1].ids) and torch.equal(last[0].removed, last[1].removed)


def test_strikes_survive_and_the_last_one_counts():
    memory = LatentMemory(CHANNELS, GRID)
    deltas = history(memory)
    assert any(len(one.struck) for one in deltas)
    restored = LatentMemory(CHANNELS, GRID)
    for delta in merged(deltas):
        restored.apply(delta)
    assert torch.equal(memory.state()["strikes"], restored.state()["strikes"])


def test_few_deltas_stay_what_they_are():
    memory = LatentMemory(CHANNELS, GRID)
    view = orbit(1)
    delta = memory.write(tokens(1), room_depth(view), view, [0])
    assert merged([]) == [] and merged([delta])[0] is delta


def test_deltas_that_know_larger_parts_or_none_merge_with_those_that_know_all():
    """As in a world that older versions began."""
    whole, restored = (LatentMemory(CHANNELS, GRID) for _ in range(2))
    deltas = history(LatentMemory(CHANNELS, GRID))
    side = slice(None, None, FINER // CLOSER)
    quarters = deltas[1].relief.view(-1, FINER, FINER)[:, side, side].flatten(1)
    deltas[0] = replace(deltas[0], relief=deltas[0].relief[:, :0])
    deltas[1] = replace(deltas[1], relief=quarters)
    for delta in deltas:
        whole.apply(delta)
    for delta in merged(deltas):
        restored.apply(delta)
    assert torch.equal(whole.state()["relief"], restored.state()["relief"])
    assert whole.state()["relief"].any()


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ([[]], [0] * 16),
        ([[1, 2, 3, 4]], [1, 1, 2, 2, 1, 1, 2, 2, 3, 3, 4, 4, 3, 3, 4, 4]),
        ([[5]], [5] * 16),
        ([[1, 2, 3]], [0] * 16),  # of no square
        ([list(range(9))], [0] * 16),  # of one that these parts do not divide
    ],
)
def test_parts_that_are_known_as_larger_ones(known, expected):
    assert in_full(torch.tensor(known, dtype=torch.int8), 16).tolist() == [expected]
    assert in_full(torch.tensor(known, dtype=torch.int8), 0).shape == (1, 0)
