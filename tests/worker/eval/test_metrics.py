"""Metrics against values that can be computed by hand."""

import math

import pytest
import tiny
import torch

from worker.eval.metrics import absrel, gradient_energy, mean_ci95, sharpness, ssim


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    return (tiny.pictures(2) + 0.1 * torch.randn(2, 3, 64, 96, generator=generator)).clamp(-1, 1)


def blurred(images: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.avg_pool2d(images, 5, stride=1, padding=2, count_include_pad=False)


def test_a_picture_is_exactly_like_itself(images):
    torch.testing.assert_close(ssim(images, images), torch.ones(2))
    assert torch.equal(sharpness(images, images), torch.ones(2))


def test_similarity_is_symmetric_and_falls_with_noise(images):
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    little, much = images + 0.05 * noise, images + 0.5 * noise
    torch.testing.assert_close(ssim(little, images), ssim(images, little.clamp(-1, 1)))
    assert (ssim(much, images) < ssim(little, images)).all() and (ssim(little, images) < 1).all()


def test_similarity_of_plain_pictures_is_that_of_their_means():
    """Without variance SSIM is (2 a b + c1) / (a^2 + b^2 + c1), with a and b in [0, 1]."""
    a, b = torch.full((1, 3, 16, 16), -0.5), torch.full((1, 3, 16, 16), 0.5)
    expected = (2 * 0.25 * 0.75 + 1e-4) / (0.25**2 + 0.75**2 + 1e-4)
    assert float(ssim(a, b)) == pytest.approx(expected, abs=1e-3)


def test_similarity_within_one_window_is_the_papers_formula(images):
    """A slow twin: Gaussian-weighted moments of a picture of 11 x 11 pixels."""
    x, y = images[:1, :, :11, :11], images[1:, :, :11, :11]
    luma = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
    p, q = (((image[0].double() + 1) / 2 * luma[:, None, None]).sum(0) for image in (x, y))
    weight = torch.tensor(
        [[math.exp(-(i * i + j * j) / 4.5) for i in range(-5, 6)] for j in range(-5, 6)],
        dtype=torch.float64,
    )
    weight /= weight.sum()
    mean_p, mean_q = (weight * p).sum(), (weight * q).sum()
    var_p, var_q = (weight * (p - mean_p) ** 2).sum(), (weight * (q - mean_q) ** 2).sum()
    both = (weight * (p - mean_p) * (q - mean_q)).sum()
    expected = ((2 * mean_p * mean_q + 1e-4) * (2 * both + 9e-4)) / (
        (mean_p**2 + mean_q**2 + 1e-4) * (var_p + var_q + 9e-4)
    )
    assert float(ssim(x, y)) == pytest.approx(float(expected), abs=1e-4)


def test_blur_is_less_sharp_and_noise_is_more(images):
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    assert (sharpness(blurred(images), images) < 0.5).all()
    assert (sharpness(images + 0.2 * noise, images) > 1).all()


def test_gradient_energy_of_stripes():
    """Columns that alternate between 0 and 1 differ by 1 across and by nothing down."""
    stripes = torch.arange(8).remainder(2).float().expand(1, 3, 8, 8)
    assert float(gradient_energy(stripes)) == 1.0
    assert float(gradient_energy(stripes.transpose(-1, -2) / 2)) == 0.25


def test_relative_depth_error_over_valid_cells():
    target = torch.tensor([[[1.0, 2.0], [4.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]]])
    prediction = torch.tensor([[[1.1, 1.0], [4.0, 9.0]], [[2.0, 2.0], [2.0, 2.0]]])
    valid = torch.tensor([[[True, True], [True, False]], [[False, False], [False, False]]])
    first, second = absrel(prediction, target, valid).tolist()
    assert first == pytest.approx((0.1 + 0.5 + 0) / 3) and math.isnan(second)


def test_the_mean_and_its_interval():
    report = mean_ci95([1.0, 2.0, 3.0, math.nan])
    assert report == {"mean": 2.0, "ci95": pytest.approx(1.96 / math.sqrt(3)), "n": 3}


def test_one_value_has_no_interval_and_none_no_mean():
    one, none = mean_ci95([4.0]), mean_ci95([math.nan])
    assert (one["mean"], one["n"]) == (4.0, 1) and one["ci95"] is None
    assert none["n"] == 0 and none["mean"] is None and none["ci95"] is None
