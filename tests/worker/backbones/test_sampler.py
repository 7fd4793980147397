"""The flow on uncovered cells and the regression on covered ones, with predictors whose answer is
known.
"""

import pytest
import torch

from worker.backbones.sampler import interpolate, noise_level, sample, times

SHAPE = (2, 3, 4, 6, 8)  # b t c h w


@pytest.fixture
def case():
    """Readout (zeros where uncovered), coverage of 0, 0.5 and 1, noise and the truth."""
    generator = torch.Generator().manual_seed(0)
    tokens, noise, clean = (torch.randn(SHAPE, generator=generator) for _ in range(3))
    coverage = torch.randint(3, (2, 3, 6, 8), generator=generator) / 2
    return tokens * (coverage[:, :, None] > 0), coverage, noise, clean


def seen_by_predictor(case, num_steps):
    """What the predictor is shown in each step if it always answers the truth."""
    readout, coverage, noise, clean = case
    seen = []

    def predict(x, level):
        seen.append((x, level))
        return clean

    return seen, sample(predict, readout, coverage, noise, num_steps)


@pytest.mark.parametrize("num_steps", [1, 2, 4, 7])
def test_a_perfect_predictor_arrives_at_the_truth(case, num_steps):
    seen, result = seen_by_predictor(case, num_steps)
    assert len(seen) == num_steps
    torch.testing.assert_close(result, case[3], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_steps", [1, 3, 8])
def test_the_last_word_is_the_predictors(case, num_steps):
    """What the predictor says last is what comes out, however it changed its mind."""
    readout, coverage, noise, _ = case
    said = []

    def predict(x, level):
        said.append(torch.full_like(x, float(len(said))))
        return said[-1]

    result = sample(predict, readout, coverage, noise, num_steps)
    assert len(said) == num_steps
    torch.testing.assert_close(result, said[-1], atol=1e-5, rtol=1e-5)


def test_covered_cells_start_at_the_readout_and_others_at_noise(case):
    readout, coverage, noise, _ = case
    known = (coverage > 0)[:, :, None].expand(SHAPE)
    (x0, level), *_ = seen_by_predictor(case, 4)[0]
    assert torch.equal(x0[known], readout[known])
    assert torch.equal(x0[~known], noise[~known])
    assert torch.equal(level, (coverage == 0).float())


def test_one_step_is_exact_where_everything_is_covered(case):
    """What a predictor says of a readout alone does not change from step to step."""
    readout, _, noise, _ = case
    asked = []

    def predict(x, level):
        asked.append(level)
        return torch.tanh(2 * x) + level[:, :, None]

    everywhere = torch.full((2, 3, 6, 8), 0.5)
    result = sample(predict, readout, everywhere, noise, 4)
    assert len(asked) == 1
    assert torch.equal(result, torch.tanh(2 * readout))


def test_covered_cells_never_move(case):
    readout, coverage, _, _ = case
    covered = (coverage > 0)[:, :, None].expand(SHAPE)
    for x, level in seen_by_predictor(case, 5)[0]:
        assert torch.equal(x[covered], readout[covered])
        assert not level[coverage > 0].any()


@pytest.mark.parametrize("num_steps", [1, 4])
def test_the_sampler_goes_where_training_has_been(case, num_steps):
    readout, coverage, noise, clean = case
    seen = seen_by_predictor(case, num_steps)[0]
    for t, (x, level) in zip(times(num_steps), seen, strict=True):
        torch.testing.assert_close(level, (1 - t) * (coverage == 0))
        on_path = interpolate(readout, coverage, noise, clean, torch.full((2,), t))
        torch.testing.assert_close(x, on_path, atol=1e-5, rtol=1e-5)


def test_interpolation_meets_its_ends_per_session(case):
    readout, coverage, noise, clean = case
    x = interpolate(readout, coverage, noise, clean, torch.tensor([0.0, 1.0]))
    known = coverage[:, :, None] > 0
    end = torch.stack([noise[0], clean[1]])
    torch.testing.assert_close(x, torch.where(known, readout, end))


def test_interpolation_is_straight(case):
    readout, _, noise, clean = case
    nothing = torch.zeros(2, 3, 6, 8)
    x = interpolate(readout, nothing, noise, clean, torch.tensor([0.25, 0.5]))
    torch.testing.assert_close(x[0], 0.75 * noise[0] + 0.25 * clean[0])
    torch.testing.assert_close(x[1], 0.5 * noise[1] + 0.5 * clean[1])


def test_the_level_is_what_is_left_of_the_noise():
    coverage = torch.tensor([0.0, 0.5, 1.0])
    assert noise_level(coverage, 0.0).tolist() == [1.0, 0.0, 0.0]
    assert noise_level(coverage, torch.tensor(0.75)).tolist() == [0.25, 0.0, 0.0]
