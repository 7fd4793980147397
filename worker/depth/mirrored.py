"""Depth of a picture from two looks: at it, and at its mirror image.

The head is off in another way in each, so that the mean of both is off by less. What is generated
has no second look: its mirror image would have to be encoded from pixels.

Axis legend: n pictures, c channels, h w the latent grid.
"""

from __future__ import annotations

from torch import Tensor

from worker.backbones.base import Backbone
from worker.geometry import Cameras


def depth_both_ways(
    backbone: Backbone,
    latents: Tensor,  # (n, c, h, w) of the pictures
    mirrored: Tensor,  # (n, c, h, w) of their mirror images
    cameras: Cameras,  # (n,)
    hint: Tensor,  # (n, h, w) z-depth in metres that the memory shows, 0 where it shows none
    pictures: Tensor,  # (n, 3, H, W) in [-1, 1]
) -> tuple[Tensor, Tensor]:
    """(n, h, w) z-depth in metres, the geometric mean of both looks, and confidence in [0, 1]."""
    depth, confidence = backbone.depth(latents, cameras, hint, pictures)
    other, its_confidence = backbone.depth(
        mirrored, cameras.mirrored(), hint.flip(-1), pictures.flip(-1)
    )
    mean = (depth * other.flip(-1)).sqrt()
    return mean, (confidence + its_confidence.flip(-1)) / 2
