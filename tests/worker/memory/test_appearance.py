"""The world changed its looks: what two observations contradict is replaced, noise is not."""

import pytest
import torch
from boxes import camera, room_depth
from torch import Tensor

from worker.geometry import Cameras
from worker.memory.latent import LatentMemory, LatentMemoryConfig

GRID, CHANNELS = (16, 24), 4
VIEW = camera((0.0, 0.0, -1.5), (0.0, 0.2, 2.5))
PAINTED = (slice(4, 12), slice(8, 18))  # cells of the wall ahead


def looks(painted: bool, noise: float = 0.0, seed: int = 0) -> Tensor:
    """(1, C, h, w) tokens of a room of one colour, of which a part may be painted anew."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.tensor([1.0, -1.0, 0.5, 0.0])[None, :, None, None].repeat(1, 1, *GRID)
    if painted:
        tokens[:, :, *PAINTED] = torch.tensor([-1.0, 0.5, 1.0, 1.0])[:, None, None]
    return tokens + noise * torch.randn(tokens.shape, generator=generator)


def observe(memory: LatentMemory, number: int, tokens: Tensor, view: Cameras = VIEW) -> None:
    memory.write(tokens, room_depth(view), view, [number], observed=True)


def colour(memory: LatentMemory) -> Tensor:
    """(h, w) what the first channel shows in the place that may be painted."""
    return memory.read(VIEW, "nearest").tokens[0, 0, *PAINTED]


@pytest.mark.parametrize("form", ["bfloat16", "int8"])
def test_a_wall_that_was_painted_is_believed_the_second_time(form):
    memory = LatentMemory(CHANNELS, GRID, cfg=LatentMemoryConfig(token_format=form))
    observe(memory, 0, looks(painted=False))
    count = memory.stats().num_points
    observe(memory, 1, looks(painted=True))
    assert (colour(memory) > 0).all()  # once is not enough
    observe(memory, 2, looks(painted=True))
    assert (colour(memory) < 0).all()
    readout = memory.read(VIEW, "nearest")
    changed = torch.zeros(GRID, dtype=torch.bool)
    changed[PAINTED] = True
    assert torch.equal(readout.source[0], torch.where(changed, 2, 0))  # and nothing else moved
    assert memory.stats().num_points == count


def test_a_glance_that_is_taken_back_changes_nothing_that_is_seen():
    memory = LatentMemory(CHANNELS, GRID)
    for number, painted in enumerate((False, True, False, False)):
        observe(memory, number, looks(painted))
        assert (colour(memory) > 0).all()


def test_tokens_that_differ_as_views_do_are_no_contradiction():
    memory = LatentMemory(CHANNELS, GRID)
    observe(memory, 0, looks(painted=False, noise=0.8))
    for number in range(1, 6):
        observe(memory, number, looks(painted=False, noise=0.8, seed=number))
    assert (memory.state()["strikes"] > 0).float().mean() < 0.03
    assert (memory.read(VIEW, "nearest").source == 0).float().mean() > 0.9


def test_a_view_from_afar_contradicts_nothing():
    """Its tokens show more of the wall at once; the nearer ones stay."""
    memory = LatentMemory(CHANNELS, GRID)
    observe(memory, 0, looks(painted=False), camera((0.0, 0.0, 0.8), (0.0, 0.1, 2.5)))
    for number in (1, 2):
        observe(memory, number, looks(painted=True), camera((0.0, 0.0, -2.3), (0.0, 0.1, 2.5)))
    assert not memory.state()["strikes"].any()


def test_what_is_imagined_contradicts_nothing():
    memory = LatentMemory(CHANNELS, GRID)
    observe(memory, 0, looks(painted=False))
    for number in (1, 2, 3):
        memory.write(looks(painted=True), room_depth(VIEW), VIEW, [number])
    assert (colour(memory) > 0).all() and not memory.state()["strikes"].any()


def test_the_correction_is_replayed_bit_for_bit():
    memory, restored = LatentMemory(CHANNELS, GRID), LatentMemory(CHANNELS, GRID)
    for number, painted in enumerate((False, True, True)):
        restored.apply(
            memory.write(looks(painted), room_depth(VIEW), VIEW, [number], observed=True)
        )
    for name, value in memory.state().items():
        assert torch.equal(restored.state()[name], value), name
