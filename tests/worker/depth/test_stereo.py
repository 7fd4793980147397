"""Depth from several posed pictures, against analytic truth: a painted room with a box in it."""

from __future__ import annotations

import itertools

import pytest
import torch
from boxes import camera, room_depth, surface
from torch import Tensor
from torch.nn import functional as F

from worker.depth.agreement import WORST, brighter
from worker.depth.stereo import (
    JUMP_COST,
    NARROW,
    NUM_NARROW,
    NUM_WIDE,
    STEP_COST,
    WIDE,
    around,
    best_factor,
    data_cost,
    log_factors,
    mean_of_least,
    nearest,
    paths,
    sweep_depths,
    swept,
    without_mean,
    witnesses,
)
from worker.geometry import Cameras, Look, cat_cameras, pool_depth

GRID = (16, 24)
BOX = [((0.3, 0.2, 1.6), (0.4, 0.4, 0.2))]


def sideways(*steps_m: float) -> Cameras:
    return cat_cameras([camera((x, 0.0, 0.0), (x, 0.0, 2.0)) for x in steps_m])


def turning(*angles_rad: float) -> Cameras:
    angles = [torch.tensor(a, dtype=torch.float64) for a in angles_rad]
    return cat_cameras([camera((0, 0, 0), (float(a.sin()), 0, float(a.cos()))) for a in angles])


def painted(cameras: Cameras, contrast: float = 1.0) -> tuple[Tensor, Tensor]:
    """(n, 3, H, W) pictures of a room whose paint is a function of the place, and
    (n, h, w) depth of the cells.
    """
    depth = room_depth(cameras, BOX)
    place = surface(cameras, depth)
    waves = torch.tensor([[17.0, 5, 9], [6, 19, 4], [9, 7, 21]], dtype=torch.float64)
    paint = (place @ waves).sin() * 0.4 + (place @ waves.flip(0) * 0.37).cos() * 0.3
    pictures = (contrast * paint).movedim(-1, 1).float()
    return pictures, pool_depth(depth, GRID)


def apart(found: Tensor, truth: Tensor) -> Tensor:
    """Relative error where depth was kept."""
    return ((found - truth) / truth).abs()[found > 0]


def sure(share: float = 0.6) -> Tensor:
    return torch.full((1, 1, 1), share)


@pytest.mark.parametrize("factor", [0.65, 1.0, 1.5])
def test_the_scale_that_one_picture_leaves_open_is_found(factor: float) -> None:
    views = sideways(0.0, 0.2, 0.4)
    pictures, truth = painted(views)
    found, confidence, closer = sweep_depths(
        pictures, views, factor * truth, sure().expand_as(truth)
    )
    error = apart(found, truth)
    assert error.median() < 0.02 and (error < 0.1).float().mean() > 0.9
    assert (found > 0).float().mean() > 0.9
    assert (confidence[found > 0] == 1).float().mean() > 0.9
    error = apart(closer, pool_depth(room_depth(views, BOX), (2 * GRID[0], 2 * GRID[1])))
    assert error.median() < 0.02 and (error < 0.1).float().mean() > 0.9
    assert ((pool_depth(closer, GRID) > 0) == (found > 0)).all()


def test_a_box_is_seen_that_the_prior_did_not_know() -> None:
    views = sideways(0.0, 0.15, 0.3, 0.45)
    pictures, truth = painted(views)
    empty = pool_depth(room_depth(views), GRID)
    box = truth < 0.9 * empty
    found, *_ = sweep_depths(pictures, views, empty, sure().expand_as(truth))
    error = ((found - truth) / truth).abs()[box & (found > 0)]
    assert box.float().mean() > 0.05
    assert (error < 0.1).float().mean() > 0.8 and (found > 0)[box].float().mean() > 0.7


def test_exposure_says_nothing_of_depth() -> None:
    views = sideways(0.0, 0.2, 0.4)
    pictures, truth = painted(views, contrast=0.7)
    brighter = pictures + torch.tensor([0.0, 0.25, -0.2])[:, None, None, None]
    found, *_ = sweep_depths(brighter, views, 0.8 * truth, sure().expand_as(truth))
    assert apart(found, truth).median() < 0.02


def test_what_has_no_texture_takes_the_scale_of_what_has() -> None:
    views = sideways(0.0, 0.2, 0.4)
    pictures, truth = painted(views)
    pictures[..., 40:88, 64:128] = 0.3  # blank in all three
    found, *_ = sweep_depths(pictures, views, 0.8 * truth, sure().expand_as(truth))
    middle = (slice(None), slice(6, 10), slice(10, 14))
    assert (found[middle] > 0).float().mean() > 0.7
    assert apart(found[middle], truth[middle]).median() < 0.1


def test_what_pictures_agree_on_is_told_to_who_guesses_again() -> None:
    views = sideways(0.0, 0.2, 0.4, 0.6)
    pictures, truth = painted(views)
    pictures[2:, :, 64:] = 0.3  # blank below: nothing says how far that is
    prior, share = truth.clone(), sure().expand_as(truth)
    prior[:, 8:] *= 1.5
    told: list[Tensor] = []

    def guess(agreed: Tensor) -> tuple[Tensor, Tensor]:
        told.append(agreed)
        return truth, share

    alone, *_ = sweep_depths(pictures, views, prior, share)
    found, *_ = sweep_depths(pictures, views, prior, share, guess)
    (agreed,) = told
    assert agreed.shape == truth.shape and 0.3 < (agreed > 0).float().mean() < 1
    assert apart(agreed[2:, :8], truth[2:, :8]).median() < 0.03
    errors = [apart(depth[2:, 9:], truth[2:, 9:]).mean() for depth in (alone, found)]
    assert errors[1] < 0.5 * errors[0]


def test_two_pictures_agree_on_too_little_to_guess_again() -> None:
    views = sideways(0.0, 0.2)
    pictures, truth = painted(views)
    share = sure().expand_as(truth)
    alone = sweep_depths(pictures, views, 0.8 * truth, share)

    def guess(agreed: Tensor) -> tuple[Tensor, Tensor]:
        raise AssertionError(f"asked with {int((agreed > 0).sum())} cells")

    asked = sweep_depths(pictures, views, 0.8 * truth, share, guess=guess)
    assert all(map(torch.equal, alone, asked))


def test_a_camera_that_turns_leaves_the_prior_and_drops_nothing() -> None:
    views = turning(0.0, 0.1, 0.2)
    pictures, truth = painted(views)
    prior = truth * torch.linspace(0.8, 1.2, len(truth))[:, None, None]  # scales that disagree
    found, *_ = sweep_depths(pictures, views, prior, sure().expand_as(truth))
    assert (found > 0).all()
    assert (found / prior).log().abs().median() < 0.05


def test_what_the_pictures_contradict_is_given_up() -> None:
    views = sideways(0.0, 0.2, 0.4, 0.6)
    depth = painted(views)[1].clone()
    agreeing, looking = witnesses(depth, views.resized(*GRID))
    inside = looking == 3
    assert inside.float().mean() > 0.2 and (agreeing >= 2)[inside].float().mean() > 0.9
    depth[0, 6:10, 10:14] *= 0.5  # in mid-air, says one picture alone
    agreeing, looking = witnesses(depth, views.resized(*GRID))
    assert not agreeing[0, 7:9, 11:13].any() and looking[0, 7:9, 11:13].any()


def test_paths_are_the_cheapest_there_are() -> None:
    generator = torch.Generator().manual_seed(0)
    lines = torch.rand(4, 1, 3, 1, generator=generator) * 5
    hold = torch.rand(3, 1, 1, generator=generator)

    def price(path: tuple[int, ...]) -> float:
        total = sum(float(lines[i, 0, s, 0]) for i, s in enumerate(path))
        for i, (a, b) in enumerate(itertools.pairwise(path)):
            jump = {0: 0.0, 1: STEP_COST}.get(abs(a - b), JUMP_COST)
            total += min(jump, JUMP_COST) * float(hold[i])
        return total

    every = list(itertools.product(range(3), repeat=4))
    cheapest = [min(price(path) for path in every if path[-1] == s) for s in range(3)]
    found = paths(lines, hold)[-1, 0, :, 0]
    relative = found - found.min()  # a constant per cell is taken off on the way
    expected = torch.tensor(cheapest) - min(cheapest)
    torch.testing.assert_close(relative, expected, rtol=1e-4, atol=1e-4)


def test_factors_are_found_between_the_samples() -> None:
    logs = torch.linspace(-1, 1, 21)
    wanted = torch.tensor([[-0.43, 0.0, 0.27]])
    cost = (logs[None, :, None, None] - wanted[:, None, None]).square()
    torch.testing.assert_close(best_factor(cost, logs), wanted[:, None].exp(), rtol=1e-4, atol=0)


def test_the_second_sweep_knows_where_an_edge_is() -> None:
    """Beside a box the first one is wrong: what some pictures can't see, and halos of the mean."""
    views = sideways(0.0, 0.15, 0.3, 0.45)
    pictures, truth = painted(views)
    prior, share = pool_depth(room_depth(views), GRID), sure().expand_as(truth)
    box = (truth < 0.9 * prior).float()[:, None]
    beside = (F.max_pool2d(box, 3, 1, 1) > -F.max_pool2d(-box, 3, 1, 1))[:, 0]
    rough = swept(without_mean(pictures), views, prior, share, log_factors(WIDE, NUM_WIDE))
    found, *_ = sweep_depths(pictures, views, prior, share)
    wrong = ((rough / truth).log().abs() > 0.03)[beside].float().mean()
    assert ((found / truth).log().abs() > 0.03)[beside & (found > 0)].float().mean() < 0.6 * wrong
    assert (found > 0)[beside].float().mean() > 0.9


def test_the_last_sweep_finds_what_lies_between_the_steps_of_the_one_before() -> None:
    views = sideways(0.0, 0.2, 0.4)
    pictures, truth = painted(views)
    share = sure().expand_as(truth)
    before = swept(pictures, views, 0.83 * truth, share, log_factors(WIDE, NUM_WIDE), 0.83 * truth)
    after = swept(pictures, views, before, share, log_factors(NARROW, NUM_NARROW), before)
    assert apart(after, truth).median() < 0.8 * apart(before, truth).median()


def test_what_another_picture_cannot_see_it_has_no_say_in() -> None:
    """A wall that a board hides from the second picture, which shows paint that lies farther."""
    views = sideways(0.0, 0.3)
    pictures, truth = painted(views)
    factors = torch.linspace(-0.8, 0.8, 25).exp()
    board = 0.5 * truth
    unknown = data_cost(pictures, views, truth, 0, [1], factors, truth)
    known = torch.stack([truth[0], board[1]])
    behind = data_cost(pictures, views, truth, 0, [1], factors, known)
    seen = unknown.argmin(0) == 12
    assert seen.float().mean() > 0.5
    assert (factors[behind.argmin(0)] < 0.7)[seen].float().mean() > 0.9


def test_brightness_is_compared_where_both_pictures_see() -> None:
    views = sideways(0.0, 0.2, 0.4)
    pictures, truth = painted(views)
    tint = torch.tensor([[0.2, 0.0, -0.1], [-0.3, 0.1, 0.0]])
    others = pictures[1:] - tint[..., None, None]
    look = Look(views.resized(*pictures.shape[-2:]), 0, [1, 2])
    found = brighter(pictures[0], others, look, truth[0], truth[1:])[..., 0, 0]
    torch.testing.assert_close(found, tint, rtol=0, atol=0.02)


def test_as_many_threads_as_there_are_find_the_same() -> None:
    views = sideways(0.0, 0.2, 0.4)
    pictures, truth = painted(views)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(sweep_depths(pictures, views, 0.8 * truth, sure().expand_as(truth)))
    finally:
        torch.set_num_threads(before)
    for alone, together in zip(*found, strict=True):
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=0)


def test_of_several_differences_the_least_count() -> None:
    each = torch.tensor([3.0, 1.0, torch.inf, 2.0])[:, None, None, None]
    assert mean_of_least(each, 1.0).item() == 2.0
    assert mean_of_least(each, 0.5).item() == 1.5
    assert mean_of_least(torch.full_like(each, torch.inf), 1.0).item() == pytest.approx(WORST)


def test_the_nearest_in_time_are_looked_at_first() -> None:
    assert nearest(0, 6) == [1, 2, 3]
    assert nearest(3, 6) == [1, 2, 4]
    assert nearest(5, 6) == [2, 3, 4]
    assert nearest(1, 3) == [0, 2]


def test_later_on_all_distances_are_looked_at() -> None:
    assert around(0, 12) == [1, 2, 4, 8]
    assert around(6, 12) == [2, 4, 5, 7, 8, 10]
    assert around(1, 2) == [0]
