"""The scale of predicted depth is taken from the memory only where that is safe."""

import pytest
import torch

from worker.depth.align import align_depth, align_depths

SHAPE = (16, 24)


def guess() -> torch.Tensor:
    return torch.rand(SHAPE, generator=torch.Generator().manual_seed(0)) * 4 + 1


@pytest.mark.parametrize("scale", [0.5, 1.0, 1.7])
def test_the_scale_is_found_despite_outliers(scale):
    predicted, coverage = guess(), torch.ones(SHAPE)
    known = predicted * scale
    known[:4] *= 6  # a quarter of the cells sees another surface
    aligned, found = align_depth(predicted, known, coverage)
    assert found == pytest.approx(scale, rel=1e-5)
    torch.testing.assert_close(aligned, predicted * scale)


def test_a_small_overlap_is_refused():
    coverage = torch.zeros(SHAPE)
    coverage[0] = 1.0  # 24 of 384 cells
    assert align_depth(guess(), guess() * 2, coverage)[1] == 1.0
    coverage[1] = 1.0
    assert align_depth(guess(), guess() * 2, coverage)[1] == pytest.approx(2.0)


def test_disagreement_is_refused():
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)).exp()
    aligned, scale = align_depth(guess(), guess() * noise * 3, torch.ones(SHAPE))
    assert scale == 1.0 and torch.equal(aligned, guess())


def test_invalid_depth_does_not_count():
    predicted, known = guess(), guess() * 2
    predicted[:5], known[5:9] = 0.0, torch.nan
    known[9] = 0.0
    assert align_depth(predicted, known, torch.ones(SHAPE))[1] == pytest.approx(2.0)


def test_each_frame_of_a_chunk_has_a_scale_of_its_own() -> None:
    predicted = torch.ones(2, 4, 6)
    known = torch.stack([torch.full((4, 6), 2.0), torch.full((4, 6), 3.0)])
    aligned = align_depths(predicted, known, torch.ones(2, 4, 6))
    torch.testing.assert_close(aligned, known)
