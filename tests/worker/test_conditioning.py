"""What the denoiser is told: batching of Worlds and noise."""

import pytest
import tiny
import torch
from boxes import orbit

from worker.conditioning import NotObservedError, chunk_noise, condition_on, frame_noise
from worker.memory import create_memory
from worker.memory.base import ReadMode, empty_readout
from worker.placed import FINER
from worker.world import World

GRID = (8, 12)


def world(seed: int = 1, recent: int = 2) -> World:
    memory = create_memory("null", tiny.CHANNELS, GRID)
    latents = torch.full((recent, tiny.CHANNELS, *GRID), float(seed), dtype=torch.bfloat16)
    return World(memory, seed, recent, latents=latents, cameras=orbit(recent, 64, 96))


def readouts(num: int, views: int, look: ReadMode = "nearest"):
    return [empty_readout(views, tiny.CHANNELS, GRID, "cpu", look) for _ in range(num)]


def test_worlds_become_one_batch():
    views = [orbit(4, 64, 96)[:3], orbit(3, 64, 96)]
    condition = condition_on([world(1), world(2)], views, readouts(2, 3), GRID)
    assert condition.front.tokens.shape == (2, 3, tiny.CHANNELS, *GRID)
    assert condition.front.coverage.shape == condition.front.depth.shape == (2, 3, *GRID)
    assert condition.recent.shape == (2, 2, tiny.CHANNELS, *GRID)
    assert condition.recent.dtype == torch.float32
    assert condition.recent.mean((1, 2, 3, 4)).tolist() == [1.0, 2.0]
    assert condition.cameras.shape == (2, 3) and condition.recent_cameras.shape == (2, 2)
    for i, cameras in enumerate(views):
        assert torch.equal(condition.cameras.world_from_camera[i], cameras.world_from_camera)


def test_finer_readouts_are_passed_on_if_all_are():
    views, (h, w) = [orbit(2, 64, 96)] * 2, GRID
    fine, coarse = readouts(2, 2, "fine"), readouts(2, 2)
    told = condition_on([world(1), world(2)], views, fine, GRID).finer
    for layer in (told, told.second):
        assert layer.tokens.shape == (2, 2, tiny.CHANNELS, FINER * h, FINER * w)
    for given in (coarse, [fine[0], coarse[1]]):
        assert condition_on([world(1), world(2)], views, given, GRID).finer is None


def test_cameras_are_those_of_the_latent_grid():
    views = orbit(2, 64, 96)
    condition = condition_on([world()], [views], readouts(1, 2), GRID)
    for cameras in (condition.cameras, condition.recent_cameras):
        assert (cameras.height, cameras.width) == GRID
        assert torch.equal(cameras.intrinsics[0] * 8, views.intrinsics)


def test_a_world_without_a_frame_is_refused():
    empty = World(create_memory("null", tiny.CHANNELS, GRID), seed=1, num_recent=1)
    with pytest.raises(NotObservedError, match="observe an image first"):
        condition_on([world(), empty], [orbit(1)] * 2, readouts(2, 1), GRID)


def test_noise_depends_on_seed_and_frame_alone():
    shape = (tiny.CHANNELS, *GRID)
    noise = frame_noise(5, 9, shape)
    assert torch.equal(noise, frame_noise(5, 9, shape))
    assert not torch.equal(noise, frame_noise(5, 10, shape))
    assert not torch.equal(noise, frame_noise(6, 9, shape))
    assert noise.shape == shape and noise.dtype == torch.float32


def test_noise_is_the_same_on_every_machine():
    expected = [-0.3608266, -0.2086328, -0.1206943]
    assert frame_noise(1, 2, (3,)).tolist() == pytest.approx(expected, abs=1e-6)


def test_noise_is_standard_normal():
    noise = frame_noise(0, 0, (16, 64, 96))
    assert float(noise.mean()) == pytest.approx(0, abs=0.02)
    assert float(noise.std()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("seed", [-1, 2**63, 2**64 + 3])
def test_any_integer_is_a_seed(seed):
    noise = frame_noise(seed, 0, (8,))
    assert torch.equal(noise, frame_noise(seed % 2**64, 0, (8,)))
    assert not torch.equal(noise, frame_noise(seed + 1, 0, (8,)))


def test_a_chunk_has_the_noise_of_its_frames_however_it_is_cut():
    state = world(seed=3)
    state.next_frame = 5
    like = torch.zeros(4, tiny.CHANNELS, *GRID)
    chunk = chunk_noise(state, like)
    state.next_frame = 7
    assert torch.equal(chunk[2:], chunk_noise(state, like[:2]))
    assert torch.equal(chunk[0], frame_noise(3, 5, tuple(like.shape[1:])))
