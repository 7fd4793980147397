"""Scale and shift of predicted depth are taken from the memory, but only where that is safe."""

import math

import pytest
import torch
from boxes import camera, room_depth
from torch import Tensor

from worker.depth.align import ANCHOR, MAX_CHANGE, align_depths, fit_lines
from worker.memory.latent import LatentMemory

SHAPE = (1, 16, 24)
EVERYWHERE = torch.ones(SHAPE)


def guess(seed: int = 0) -> Tensor:
    return torch.rand(SHAPE, generator=torch.Generator().manual_seed(seed)) * 4 + 1


def noise(seed: int, spread: float) -> Tensor:
    return (spread * torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))).exp()


def refused(predicted: Tensor, known: Tensor, coverage: Tensor) -> bool:
    aligned = align_depths(predicted, known, coverage)
    scale, shift_m = fit_lines(predicted, known, coverage)
    assert torch.equal(aligned, predicted) == (float(scale) == 1.0 and float(shift_m) == 0.0)
    return torch.equal(aligned, predicted)


@pytest.mark.parametrize("scale", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("shift_m", [0.0, 0.4])
def test_scale_and_shift_are_found_despite_outliers(scale, shift_m):
    known = scale * guess() + shift_m
    truth = known.clone()
    known[:, :4] *= 6  # a quarter of the cells sees another surface
    aligned = align_depths(guess(), known, EVERYWHERE)
    torch.testing.assert_close(aligned, truth, rtol=0.01, atol=0)


def test_a_known_distance_scales_only_what_is_known_in_the_middle():
    predicted = torch.zeros(1, 6, 6)
    predicted[0, 0, 0] = 3.0
    assert torch.equal(align_depths(predicted, predicted, predicted, centre_m=2.0), predicted)
    predicted[0, 2, 2], predicted[0, 3, 3] = 4.0, torch.inf
    assert align_depths(predicted, predicted, predicted, centre_m=2.0)[0, 0, 0] == 1.5


def test_a_scale_alone_is_found_exactly():
    known = 1.7 * guess()
    known[:, :4] = 30.0
    scale, shift_m = fit_lines(guess(), known, EVERYWHERE)
    assert float(scale) == pytest.approx(1.7, rel=1e-5)
    assert float(shift_m) == pytest.approx(0.0, abs=1e-4)


def test_a_plane_that_says_nothing_of_the_shift_gives_a_scale():
    scale, shift_m = fit_lines(torch.full(SHAPE, 2.0), torch.full(SHAPE, 3.0), EVERYWHERE)
    assert (float(scale), float(shift_m)) == pytest.approx((1.5, 0.0))


def test_noise_of_the_prediction_averages_out():
    aligned = align_depths(guess() * noise(3, 0.2), 1.5 * guess() + 0.2, EVERYWHERE)
    ratio = aligned / (1.5 * guess() + 0.2)
    assert abs(float(ratio.log().mean())) < 0.03


def test_a_small_overlap_is_refused():
    coverage = torch.zeros(SHAPE)
    coverage[:, 0] = 1.0  # 24 of 384 cells
    assert refused(guess(), guess() * 2, coverage)
    coverage[:, 1] = 1.0
    assert not refused(guess(), guess() * 2, coverage)
    assert refused(guess(), guess() * 2, torch.zeros(SHAPE))


def test_disagreement_is_refused():
    assert refused(guess(), guess(9) * noise(1, 1.0) * 3, EVERYWHERE)


def test_a_line_that_bends_any_depth_too_far_is_refused():
    assert refused(guess(), guess() * (MAX_CHANGE + 0.2), EVERYWHERE)
    assert not refused(guess(), guess() * (MAX_CHANGE - 0.2), EVERYWHERE)
    assert refused(guess(), 0.9 * guess() - 0.8, EVERYWHERE)  # near cells would nearly vanish


def test_invalid_depth_does_not_count():
    predicted, known = guess(), guess() * 2
    predicted[:, :5], known[:, 5:9] = 0.0, torch.nan
    known[:, 9] = 0.0
    aligned = align_depths(predicted, known, EVERYWHERE)
    torch.testing.assert_close(aligned[:, 5:], 2 * guess()[:, 5:], rtol=0.1, atol=0)
    assert refused(torch.zeros(SHAPE), known, EVERYWHERE)


def test_each_frame_of_a_chunk_has_a_line_of_its_own():
    predicted = torch.ones(3, 4, 6)
    known = torch.stack([torch.full((4, 6), 2.0), torch.full((4, 6), 3.0), torch.zeros(4, 6)])
    together = align_depths(predicted, known, torch.ones(3, 4, 6))
    torch.testing.assert_close(together, torch.where(known > 0, known, 1.0))
    for t in range(3):
        one = slice(t, t + 1)
        alone = align_depths(predicted[one], known[one], torch.ones(1, 4, 6))
        assert torch.equal(alone, together[one])


def test_uncovered_cells_anchor_the_line():
    """The smaller the overlap, the less it says about the rest, unless it says another scale."""
    found = []
    for rows in (2, 8, 16):
        coverage = torch.zeros(SHAPE)
        coverage[:, :rows] = 1.0
        aligned = align_depths(torch.full(SHAPE, 2.0), torch.full(SHAPE, 2.2), coverage)
        found.append(float(aligned[0, 0, 0]))
    assert 2 < found[0] < found[1] < found[2] == pytest.approx(2.2)
    coverage[:, 2:] = 0.0
    aligned = align_depths(torch.full(SHAPE, 2.0), torch.full(SHAPE, 5.0), coverage)
    assert float(aligned[0, 0, 0]) > 4.8


def drift(align: object, num_frames: int) -> Tensor:
    """(num_frames,) log of memory's depth over the truth, along a wall that is never seen twice.

    Every prediction has a scale, a shift and noise of its own; only the first frame is measured.
    """
    generator = torch.Generator().manual_seed(4)
    memory = LatentMemory(2, SHAPE[1:])
    errors = []
    for i in range(num_frames):
        x = 0.6 * i
        view = camera((x, 0.0, 0.0), (x, 0.2, 1.0), 64, 96)
        truth = room_depth(view.resized(*SHAPE[1:]), half=(500.0, 1.5, 2.5)).float()
        scale, shift_m = torch.randn(2, generator=generator).mul(0.15).tolist()
        depth = truth * math.exp(scale) + shift_m
        depth *= (0.05 * torch.randn(SHAPE, generator=generator)).exp()
        readout = memory.read(view)
        depth = truth if i == 0 else align(depth, readout.depth, readout.coverage)
        tokens = torch.zeros(1, 2, *SHAPE[1:])
        memory.write(tokens, depth, view, [i], observed=i == 0, readout=readout)
        errors.append((depth / truth).log().median())
    return torch.stack(errors)


def test_drift_stays_bounded_over_many_chunks():
    aligned = drift(align_depths, 60)
    alone = drift(lambda depth, *_: depth, 60)
    assert float(alone.abs().max()) > 0.3
    assert float(aligned.abs().max()) < 0.2
    assert float(aligned.square().mean()) < 0.5 * float(alone.square().mean())
    late, early = aligned[30:].abs().mean(), aligned[1:30].abs().mean()
    assert float(late) < 2 * float(early) + 0.05
    assert float(aligned.diff().abs().mean()) < 0.5 * float(alone.diff().abs().mean())
    assert ANCHOR > 0
