"""The codec: shapes, normalisation, locality; psnr against values computed by hand."""

import math

import pytest
import tiny
import torch

from worker.codec import STRIDE, Codec, CodecConfig, psnr


@pytest.fixture
def codec():
    torch.manual_seed(0)
    return Codec(tiny.CODEC).requires_grad_(False)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (48, 80), (64, 96), (176, 16)])
def test_a_round_trip_keeps_the_size_of_any_multiple_of_16(codec, height, width):
    images = torch.rand(2, 3, height, width) * 2 - 1
    latents = codec.encode(images)
    assert latents.shape == (2, tiny.CHANNELS, height // STRIDE, width // STRIDE)
    assert codec.decode(latents).shape == images.shape


def test_the_default_has_16_channels():
    cfg = CodecConfig(width_quarter=4, width_eighth=4, num_blocks=1)
    assert Codec(cfg).encode(torch.zeros(1, 3, 16, 16)).shape == (1, 16, 2, 2)


def test_normalised_latents_have_no_mean_and_unit_variance_and_decode_the_same(codec):
    images = tiny.pictures(6)
    before = codec.decode(codec.encode(images))
    assert codec.encode(images).std((0, 2, 3)).sub(1).abs().max() > 0.05
    for reference in (images.clamp(min=0.2), images):  # what was folded in before is no obstacle
        codec.normalise_to(codec.encode(reference))
        latents = codec.encode(reference)
        assert latents.mean((0, 2, 3)).abs().max() < 1e-4
        torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(tiny.CHANNELS))
        decoded = codec.decode(codec.encode(images))
        torch.testing.assert_close(decoded, before, atol=1e-5, rtol=1e-4)


def test_the_normalisation_is_part_of_the_weights(codec):
    codec.normalise_to(codec.encode(tiny.pictures(2)))
    other = Codec(tiny.CODEC)
    other.load_state_dict(codec.state_dict())
    images = tiny.pictures(1, seed=3)
    assert torch.equal(other.encode(images), codec.encode(images))


def test_a_picture_moved_by_whole_cells_gives_the_same_tokens_elsewhere(codec):
    """Nothing couples a token to the rest of its picture, so that the memory may move it."""
    wide = torch.rand(1, 3, 128, 160) * 2 - 1
    left, right = codec.encode(wide[..., :128]), codec.encode(wide[..., 2 * STRIDE : 144])
    inner = slice(5, -5)
    torch.testing.assert_close(
        left[..., 2:][..., inner, inner], right[..., :-2][..., inner, inner], atol=1e-5, rtol=1e-4
    )


def test_pictures_of_a_batch_do_not_touch_each_other(codec):
    images = tiny.pictures(3)
    alone = codec.decode(codec.encode(images[1:2]))
    torch.testing.assert_close(codec.decode(codec.encode(images))[1:2], alone)


def test_psnr_of_a_known_error():
    target = torch.zeros(2, 3, 4, 4)
    prediction = torch.stack([target[0] + 0.2, target[1] + 0.02])  # 0.1 and 0.01 of the range
    torch.testing.assert_close(psnr(prediction, target), torch.tensor([20.0, 40.0]))


def test_psnr_counts_what_is_shown_of_values_out_of_range():
    target = torch.full((1, 3, 2, 2), 1.0)
    assert float(psnr(target + 7, target)) == math.inf


def test_psnr_under_a_mask_sees_only_the_mask():
    target = torch.zeros(1, 3, 4, 4)
    prediction = target.clone()
    prediction[..., 0, :] = 0.2
    prediction[..., 1:, :] = 0.9
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[:, 0] = True
    assert float(psnr(prediction, target, mask)) == pytest.approx(20.0, abs=1e-4)
    assert float(psnr(prediction, target)) < 10


def test_psnr_under_an_empty_mask_is_undefined_for_that_picture_alone():
    target = torch.zeros(2, 3, 4, 4)
    mask = torch.ones(2, 4, 4, dtype=torch.bool)
    mask[1] = False
    first, second = psnr(target + 0.2, target, mask).tolist()
    assert first == pytest.approx(20.0, abs=1e-4) and math.isnan(second)
