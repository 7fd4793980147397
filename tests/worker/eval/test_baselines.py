"""The last-frame memory; that it obeys the contract is shown in tests/worker/memory."""

import pytest
import torch
from boxes import orbit, room_depth

from worker.eval.baselines import LastFrameMemory, UnfusedMemory
from worker.memory import create_memory
from worker.projection import quality_of

GRID, CHANNELS = (8, 12), 4


@pytest.fixture
def memory():
    return LastFrameMemory(CHANNELS, GRID)


def write(memory, views, first: int):
    tokens = torch.randn(len(views), CHANNELS, *GRID, generator=torch.Generator().manual_seed(1))
    sources = list(range(first, first + len(views)))
    return memory.write(tokens, room_depth(views), views, sources, observed=True)


def test_only_the_last_frame_is_remembered(memory):
    views = orbit(6, 64, 96)
    write(memory, views[:3], 0)
    assert set(memory.state()["source"].tolist()) == {2} and memory.stats().num_sources == 1
    assert memory.read(views[2:3]).coverage.mean() > 0.95
    write(memory, views[5:], 7)
    assert set(memory.state()["source"].tolist()) == {7}
    assert memory.read(views[2:3]).coverage.mean() < 0.1
    assert memory.read(views[5:]).coverage.mean() > 0.95


def test_it_is_the_latent_memory_of_that_frame(memory):
    views = orbit(6, 64, 96)
    write(memory, views[:3], 0)
    write(memory, views[3:4], 3)
    fresh = create_memory("latent", CHANNELS, GRID)
    write(fresh, views[3:4], 3)
    assert memory.state().keys() == fresh.state().keys()
    for name, value in fresh.state().items():
        assert torch.equal(memory.state()[name], value), name


def test_confidence_and_mask_are_those_of_the_last_frame(memory):
    views = orbit(2, 64, 96)
    mask = torch.zeros(2, *GRID, dtype=torch.bool)
    mask[0] = True
    mask[1, :, :6] = True
    confidence = torch.stack([torch.full(GRID, 0.1), torch.full(GRID, 0.9)])
    tokens = torch.ones(2, CHANNELS, *GRID)
    delta = memory.write(tokens, room_depth(views), views, [0, 1], confidence, mask)
    assert len(delta.ids) == 8 * 6
    plain = LastFrameMemory(CHANNELS, GRID).write(tokens, room_depth(views), views, [0, 1])
    ratio = quality_of(delta.quality).max() / quality_of(plain.quality).max()
    assert float(ratio) <= 0.91


def test_without_fusion_a_place_seen_twice_is_held_twice():
    views = orbit(6, 64, 96)
    unfused, latent = UnfusedMemory(CHANNELS, GRID), create_memory("latent", CHANNELS, GRID)
    for memory in (unfused, latent):
        write(memory, views[:1], 0)
        write(memory, views[:1], 1)
    cells = GRID[0] * GRID[1]
    assert unfused.stats().num_points == 2 * cells and latent.stats().num_points == cells
    assert unfused.read(views[:1]).coverage.mean() > 0.95


def test_frames_of_one_write_are_all_held_and_can_be_repeated():
    views = orbit(6, 64, 96)
    memory, copy = UnfusedMemory(CHANNELS, GRID), UnfusedMemory(CHANNELS, GRID)
    for delta in (write(memory, views[:2], 0), write(memory, views[2:3], 2)):
        copy.apply(delta)
    assert memory.stats().num_points == 3 * GRID[0] * GRID[1]
    for name, value in memory.state().items():
        assert torch.equal(copy.state()[name], value), name


def test_without_fusion_generated_frames_still_fill_only_what_is_uncovered():
    views = orbit(6, 64, 96)
    memory = UnfusedMemory(CHANNELS, GRID)
    write(memory, views[:1], 0)
    tokens = torch.ones(1, CHANNELS, *GRID)
    memory.write(tokens, room_depth(views[:1].resized(*GRID)), views[:1], [1])
    assert memory.stats().num_points == GRID[0] * GRID[1]
