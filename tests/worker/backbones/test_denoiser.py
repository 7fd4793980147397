"""The denoiser's contract with its condition, on a toy network whose every weight is noise."""

from dataclasses import replace

import pytest
import tiny
import torch
from boxes import orbit, recentred

from worker.backbones.base import Condition
from worker.backbones.denoiser import Denoiser, DenoiserConfig, joined
from worker.geometry import Cameras
from worker.placed import Placed

SESSIONS, TARGETS, RECENT = 3, 2, 2


def condition(grid: tuple[int, int] = (8, 12), seed: int = 0) -> Condition:
    generator = torch.Generator().manual_seed(seed)
    frames = (SESSIONS, TARGETS)
    cameras = orbit(SESSIONS * (TARGETS + RECENT), *grid).reshape(SESSIONS, -1)
    coverage = torch.randint(3, (*frames, *grid), generator=generator) / 2
    tokens = torch.randn(*frames, tiny.CHANNELS, *grid, generator=generator)
    front = Placed(
        tokens * (coverage[:, :, None] > 0),
        coverage,
        depth=(1 + torch.rand(*frames, *grid, generator=generator)) * (coverage > 0),
        offset=torch.zeros(*frames, 2, *grid),
        span=(coverage > 0).float()[:, :, None].expand(-1, -1, 2, -1, -1),
    )
    return Condition(
        front,
        cameras=cameras[:, RECENT:],
        recent=torch.randn(SESSIONS, RECENT, tiny.CHANNELS, *grid, generator=generator),
        recent_cameras=cameras[:, :RECENT],
    )


def inputs(given: Condition) -> tuple[torch.Tensor, torch.Tensor, Condition]:
    noisy = torch.randn(given.front.tokens.shape, generator=torch.Generator().manual_seed(1))
    return noisy, torch.full_like(given.front.coverage, 0.5), given


def pick(given: Condition, order: list[int]) -> Condition:
    front = {name: value[order] for name, value in vars(given.front).items() if value is not None}
    others = (given.cameras, given.recent, given.recent_cameras)
    return Condition(Placed(**front), *(value[order] for value in others))


@pytest.fixture
def denoiser():
    return tiny.modules()[1].requires_grad_(False)


def test_with_a_silent_head_the_readout_comes_out_where_it_is_covered(denoiser):
    torch.nn.init.zeros_(denoiser.head[-1].weight)
    torch.nn.init.zeros_(denoiser.head[-1].bias)
    given = changed(condition(), "tokens", torch.randn(condition().front.tokens.shape))
    assert torch.equal(denoiser(*inputs(given)), given.front.tokens)


@pytest.mark.parametrize("grid", [(8, 12), (2, 2), (6, 10), (10, 6)])
def test_any_grid_works(denoiser, grid):
    given = condition(grid)
    out = denoiser(*inputs(given))
    assert out.shape == (SESSIONS, TARGETS, tiny.CHANNELS, *grid)
    assert out.isfinite().all()


def test_sessions_are_interchangeable_and_apart(denoiser):
    given, order = condition(), [2, 0, 1]
    noisy, level, _ = inputs(given)
    out = denoiser(noisy, level, given)
    permuted = denoiser(noisy[order], level[order], pick(given, order))
    torch.testing.assert_close(permuted, out[order])
    alone = denoiser(noisy[1:2], level[1:2], pick(given, [1]))
    torch.testing.assert_close(alone, out[1:2])
    assert not torch.allclose(out[0], out[1])


def changed(given: Condition, name: str, value: torch.Tensor) -> Condition:
    return replace(given, front=replace(given.front, **{name: value}))


@pytest.mark.parametrize("name", ["tokens", "coverage", "depth"])
def test_all_that_is_remembered_matters(denoiser, name):
    given = condition()
    noisy, level, _ = inputs(given)
    other = changed(given, name, getattr(condition(seed=5).front, name))
    assert (denoiser(noisy, level, other) - denoiser(noisy, level, given)).abs().max() > 1e-3


def test_what_came_before_matters(denoiser):
    given = condition()
    noisy, level, _ = inputs(given)
    other = replace(given, recent=condition(seed=5).recent)
    assert (denoiser(noisy, level, other) - denoiser(noisy, level, given)).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["cameras", "recent_cameras"])
def test_cameras_matter(denoiser, name):
    given = condition()
    noisy, level, _ = inputs(given)
    views = getattr(given, name)
    other = replace(given, **{name: views[[1, 2, 0]]})
    assert (denoiser(noisy, level, other) - denoiser(noisy, level, given)).abs().max() > 1e-3


def test_level_and_noisy_latents_matter(denoiser):
    noisy, level, given = inputs(condition())
    out = denoiser(noisy, level, given)
    assert (denoiser(noisy, level / 5, given) - out).abs().max() > 1e-3
    assert (denoiser(noisy + 1, level, given) - out).abs().max() > 1e-3


def test_the_worlds_origin_does_not_matter(denoiser):
    given = condition()
    noisy, level, _ = inputs(given)
    away = torch.tensor([300.0, 2.0, -80.0], dtype=torch.float64)
    moved = {name: recentred(getattr(given, name), away) for name in ("cameras", "recent_cameras")}
    torch.testing.assert_close(
        denoiser(noisy, level, replace(given, **moved)),
        denoiser(noisy, level, given),
        atol=1e-4,
        rtol=1e-4,
    )


def test_frames_of_a_chunk_see_each_other(denoiser):
    noisy, level, given = inputs(condition())
    changed = noisy.clone()
    changed[0, 0] += 3
    difference = (denoiser(changed, level, given) - denoiser(noisy, level, given)).abs()
    assert difference[0, 1].max() > 1e-4
    assert difference[1:].max() < 1e-5


def test_a_new_network_shows_the_readout_almost_unchanged():
    torch.manual_seed(0)
    fresh = Denoiser(DenoiserConfig(tiny.CHANNELS, (16, 16, 16), head_channels=8))
    given = condition()
    with torch.no_grad():
        change = fresh(*inputs(given)) - given.front.tokens * given.front.coverage[:, :, None]
    assert 0 < float(change.std()) < 0.5


def test_joined_cameras_keep_sessions_and_order():
    views = orbit(8, 8, 12)
    recent, targets = views[:2].reshape(2, 1), views[2:].reshape(2, 3)
    together = joined(recent, targets)
    assert isinstance(together, Cameras) and together.shape == (2, 4)
    expected = views.world_from_camera[torch.tensor([[0, 2, 3, 4], [1, 5, 6, 7]])]
    assert torch.equal(together.world_from_camera, expected)
