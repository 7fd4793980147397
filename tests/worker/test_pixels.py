"""Pictures at the edge and inside."""

import torch

from worker.pixels import from_uint8, to_uint8


def test_every_level_survives_the_round_trip():
    levels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(1, 16, 16, 3)
    pixels = from_uint8(levels)
    assert pixels.shape == (1, 3, 16, 16) and pixels.dtype == torch.float32
    assert (pixels.min(), pixels.max()) == (-1.0, 1.0)
    assert torch.equal(to_uint8(pixels), levels)


def test_values_are_clamped_and_rounded_to_the_nearest_level():
    values = torch.tensor([-5.0, -1.0, 0.0, 1.0, 5.0, -1 + 1.4 / 127.5, -1 + 1.6 / 127.5])
    images = to_uint8(values.view(1, 1, 1, 7).expand(1, 3, 1, 7))
    assert images[0, 0, :, 1].tolist() == [0, 0, 128, 255, 255, 1, 2]
    assert images.shape == (1, 1, 7, 3) and images.is_contiguous()


def test_half_precision_is_rounded_after_it_is_widened():
    pixels = torch.full((1, 3, 2, 2), 0.503, dtype=torch.bfloat16)
    assert torch.equal(to_uint8(pixels), to_uint8(pixels.float()))
