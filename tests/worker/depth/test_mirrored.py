"""Depth from a picture and its mirror image: what is off to one side in both cancels out."""

from __future__ import annotations

import torch
from boxes import camera
from torch import Tensor

from bench.noop import NoopBackbone
from worker.depth.mirrored import depth_both_ways
from worker.geometry import Cameras

HEIGHT, WIDTH = 32, 64
LEAN = 0.2  # log of depth that it is off by at the right edge, and less at the left


class Leaning(NoopBackbone):
    """Takes what lies to the right for farther, is surer there, and goes by what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Cameras, Tensor, Tensor | None]] = []

    def depth(
        self, latents: Tensor, cameras: Cameras, hint: Tensor, pictures: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        self.seen.append((cameras, hint, pictures))
        lean = torch.linspace(-1, 1, latents.shape[-1])
        true = 3 + latents[:, 0]
        return true * torch.exp(LEAN * lean), (0.5 + 0.1 * lean).expand_as(true)


def test_what_is_off_to_one_side_cancels_out() -> None:
    backbone, view = Leaning(), camera((1.0, 0.5, 0.0), (2.0, 0.2, 2.0), HEIGHT, WIDTH)
    images = torch.rand(1, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))
    latents, hint = backbone.encode(images), torch.rand(1, 4, 8)
    mirrored = backbone.encode(images.flip(-1))
    depth, confidence = depth_both_ways(backbone, latents, mirrored, view, hint, images)
    torch.testing.assert_close(depth, 3 + latents[:, 0])
    torch.testing.assert_close(confidence, torch.full_like(depth, 0.5))
    (_, told, picture), (turned, its, other) = backbone.seen
    assert picture is not None and other is not None and torch.equal(picture.flip(-1), other)
    assert torch.equal(its.flip(-1), told)
    torch.testing.assert_close(turned.mirrored().intrinsics, view.intrinsics)


def test_a_mirrored_camera_sees_the_mirrored_world() -> None:
    """A point at (-x, y, z) lies where one at (x, y, z) did, counted from the other side."""
    view = camera((1.0, 0.5, 0.0), (2.0, 0.2, 2.0), HEIGHT, WIDTH)
    point = torch.tensor([1.7, 0.4, 1.5, 1.0], dtype=torch.float64)
    (u, v), (mirrored_u, mirrored_v) = (
        seen(one, at)
        for one, at in ((view, point), (view.mirrored(), point * torch.tensor([-1, 1, 1, 1])))
    )
    assert 0 < u < WIDTH and 0 < v < HEIGHT
    torch.testing.assert_close(torch.stack([WIDTH - u, v]), torch.stack([mirrored_u, mirrored_v]))
    assert torch.linalg.det(view.mirrored().world_from_camera[0, :3, :3]) > 0


def seen(view: Cameras, point: Tensor) -> tuple[Tensor, Tensor]:
    x, y, z, _ = view.camera_from_world[0] @ point
    fx, fy, cx, cy = view.intrinsics[0]
    return fx * x / z + cx, fy * y / z + cy
