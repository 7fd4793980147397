"""The latent depth head and what its outputs mean."""

import math
from dataclasses import replace

import pytest
import tiny
import torch
from boxes import camera

from worker.backbones.rays import view_rays
from worker.depth.head import FAR_M, NEAR_M, DepthConfig, DepthHead, spread_of, to_depth
from worker.depth.seen import seen
from worker.photographic import Features, FeaturesConfig


@pytest.fixture
def head():
    return tiny.modules()[2].requires_grad_(False)


def rays(grid: tuple[int, int], num: int = 2) -> torch.Tensor:
    return view_rays(camera((0, 0, 0), (0, 0, 1), *grid)).expand(num, -1, -1, -1)


@pytest.mark.parametrize("grid", [(8, 12), (2, 2), (6, 10), (22, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_grid_gives_one_value_per_cell_in_single_precision(head, grid, dtype):
    latents = torch.randn(2, tiny.CHANNELS, *grid).to(dtype)
    for out in head.to(dtype)(latents, rays(grid), torch.zeros(2, *grid)):
        assert out.shape == (2, *grid) and out.dtype == torch.float32


def test_pictures_of_a_batch_do_not_touch_each_other(head):
    latents = torch.randn(3, tiny.CHANNELS, 8, 12)
    none = torch.zeros(3, 8, 12)
    together = head(latents, rays((8, 12), 3), none)[0]
    torch.testing.assert_close(head(latents[1:2], rays((8, 12), 1), none[:1])[0], together[1:2])


@pytest.mark.parametrize("grid", [(8, 12), (6, 10), (5, 9)])
def test_a_head_that_sees_takes_pictures_of_any_size(grid):
    torch.manual_seed(0)
    eyes = Features(FeaturesConfig())
    head = DepthHead(replace(tiny.DEPTH, sees=(112, 320))).requires_grad_(False)
    latents, none = torch.randn(1, tiny.CHANNELS, *grid), torch.zeros(1, *grid)
    pictures = torch.rand(1, 3, 8 * grid[0], 8 * grid[1]) * 2 - 1
    told = seen(eyes, pictures, torch.float32)
    blind = head(latents, rays(grid, 1), none)
    for one, other in zip(head(latents, rays(grid, 1), none, told), blind, strict=True):
        assert torch.equal(one, other)  # a new one doesn't look yet
    for layer in head.seeing:
        torch.nn.init.normal_(layer.weight, std=0.1)
        torch.nn.init.normal_(layer.bias)
    assert not torch.equal(head(latents, rays(grid, 1), none, told)[0], blind[0])
    nothing = [torch.zeros_like(part) for part in told]
    out = [head(latents, rays(grid, 1), none, some)[0] for some in (nothing, ())]
    torch.testing.assert_close(*out)


def test_the_scale_of_the_error_stays_within_bounds(head):
    latents = 1e3 * torch.randn(2, tiny.CHANNELS, 8, 12)
    _, log_scale = head(latents, rays((8, 12)), torch.zeros(2, 8, 12))
    assert (float(log_scale.min()), float(log_scale.max())) == (-5.0, 3.0)


def test_a_new_head_starts_at_the_middle_of_a_room():
    torch.manual_seed(0)
    fresh = DepthHead(DepthConfig(tiny.CHANNELS, (16, 16, 32)))
    with torch.no_grad():
        latents, none = torch.randn(1, tiny.CHANNELS, 8, 12), torch.zeros(1, 8, 12)
        depth, confidence = to_depth(*fresh(latents, rays((8, 12), 1), none))
    assert 2 < float(depth.mean()) < 5 and 0.2 < float(confidence.mean()) < 0.8


def test_confidence_falls_with_the_scale_of_the_error_and_is_a_probability():
    _, confidence = to_depth(torch.zeros(50), torch.linspace(-2, 3, 50))
    assert (confidence.diff() < 0).all()
    extremes = to_depth(torch.zeros(2), torch.tensor([-5.0, 3.0]))[1].tolist()
    assert 0.99 < extremes[0] <= 1 and 0 <= extremes[1] < 0.1


def test_confidence_is_the_laplace_probability_of_a_quarter():
    """P(|log ratio| < log 1.25) for a Laplace distribution of scale 0.3, by sampling."""
    generator = torch.Generator().manual_seed(0)
    sign = torch.rand(200_000, generator=generator).sub(0.5).sign()
    error = 0.3 * sign * -torch.rand(200_000, generator=generator).log()
    inside = (error.abs() < math.log(1.25)).float().mean()
    _, confidence = to_depth(torch.zeros(1), torch.tensor([math.log(0.3)]))
    assert float(confidence) == pytest.approx(float(inside), abs=0.01)


def test_depth_is_metres_within_what_a_room_can_have():
    depth, _ = to_depth(torch.tensor([-50.0, 0.0, math.log(3), 50.0]), torch.zeros(4))
    assert depth.tolist() == pytest.approx([NEAR_M, 1.0, 3.0, FAR_M])


def test_the_spread_is_found_back_from_the_confidence():
    log_scale = torch.tensor([-2.0, -1.0, 0.0, 1.5])
    _, confidence = to_depth(torch.zeros(4), log_scale)
    torch.testing.assert_close(spread_of(confidence), log_scale.exp(), rtol=1e-3, atol=0)
    assert spread_of(torch.tensor([0.0, 1.0])).isfinite().all()
