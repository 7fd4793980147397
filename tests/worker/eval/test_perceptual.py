"""The perceptual distance: zero for equals, blind to nothing that a person sees, masked."""

import tiny
import torch
from torch.nn.functional import avg_pool2d, interpolate

from worker.eval.perceptual import distance_maps, perceptual

PICTURES = tiny.pictures(2, 64, 96) + 0.3 * torch.randn(
    2, 3, 64, 96, generator=torch.Generator().manual_seed(1)
)


def blurred(images: torch.Tensor, factor: int) -> torch.Tensor:
    return interpolate(avg_pool2d(images, factor), images.shape[-2:], mode="bilinear")


def test_equal_pictures_are_no_distance_apart():
    assert perceptual(distance_maps(PICTURES, PICTURES)).tolist() == [0.0, 0.0]


def test_more_blur_is_farther():
    near, far = (
        perceptual(distance_maps(blurred(PICTURES, factor), PICTURES)) for factor in (2, 8)
    )
    assert (0 < near).all() and (near < far).all()


def test_only_what_the_mask_shows_counts():
    wrong = PICTURES.clone()
    wrong[..., 48:] = 0
    left = torch.zeros(2, 64, 96, dtype=torch.bool)
    left[..., :16] = True
    maps = distance_maps(wrong, PICTURES)
    assert (perceptual(maps, left) < 0.2 * perceptual(maps)).all()
    assert perceptual(maps, left & False).isnan().all()
