"""Rays: unit directions, the same wherever the world's origin lies."""

import math

import pytest
import torch
from boxes import camera, orbit

from worker.backbones.rays import pluecker, view_rays
from worker.geometry import Cameras, look_at


def moved(cameras: Cameras, by: torch.Tensor) -> Cameras:
    return Cameras(
        cameras.intrinsics, by @ cameras.world_from_camera, cameras.height, cameras.width
    )


@pytest.fixture
def views():
    """(1, 4) cameras at grid size."""
    return orbit(4, 8, 12).reshape(1, 4)


def test_directions_are_unit_vectors_and_shapes_are_the_grids(views):
    rays = pluecker(views, views[:, 0])
    assert rays.shape == (1, 4, 6, 8, 12) and rays.dtype == torch.float32
    torch.testing.assert_close(rays[:, :, :3].norm(dim=2), torch.ones(1, 4, 8, 12))


def test_moving_the_whole_world_changes_nothing(views):
    eye, target = torch.tensor([5000.0, -40.0, 900.0]), torch.tensor([5001.0, -40.3, 902.0])
    by = look_at(eye, target)
    torch.testing.assert_close(
        pluecker(moved(views, by), moved(views, by)[:, 0]),
        pluecker(views, views[:, 0]),
        atol=1e-6,
        rtol=0,
    )


def test_the_reference_itself_has_no_moment_and_looks_ahead(views):
    own = pluecker(views[:, :1], views[:, 0])[0, 0]
    assert own[3:].abs().max() < 1e-6
    torch.testing.assert_close(own[2] > 0, torch.ones(8, 12, dtype=torch.bool))
    torch.testing.assert_close(own[0], -own[0].flip(-1))


def test_another_reference_gives_other_rays(views):
    assert not torch.allclose(pluecker(views, views[:, 0]), pluecker(views, views[:, 1]))


def test_the_moment_is_origin_cross_direction():
    reference = camera((0, 0, 0), (0, 0, 1), 3, 3)
    view = camera((2.0, 0, 0), (2.0, 0, 1), 3, 3)  # two metres to the right, looking ahead
    middle = pluecker(view[None], reference)[0, 0, :, 1, 1]
    expected = [0, 0, 1, 0, -math.asinh(2.0), 0]  # (2, 0, 0) x (0, 0, 1) = (0, -2, 0)
    assert middle.tolist() == pytest.approx(expected, abs=1e-6)


def test_a_camera_turned_to_the_right_looks_to_the_right():
    reference, view = camera((0, 0, 0), (0, 0, 1), 3, 3), camera((0, 0, 0), (1, 0, 0), 3, 3)
    middle = pluecker(view[None], reference)[0, 0, :, 1, 1]
    assert middle.tolist() == pytest.approx([1, 0, 0, 0, 0, 0], abs=1e-6)


def test_every_session_has_its_own_reference(views):
    both = Cameras(
        views.intrinsics.repeat(2, 1, 1),
        torch.cat([views.world_from_camera, views.world_from_camera.flip(1)]),
        8,
        12,
    )
    rays = pluecker(both, both[:, 0])
    torch.testing.assert_close(rays[1:], pluecker(views[:, [3, 2, 1, 0]], views[:, 3]))


@pytest.mark.parametrize("fov_deg", [40.0, 80.0])
def test_view_rays_tell_the_field_of_view(fov_deg):
    rays = view_rays(camera((1, 2, 3), (3, 2, 1), 8, 12, fov_deg))
    assert rays.shape == (1, 2, 8, 12) and rays.dtype == torch.float32
    edge = math.tan(math.radians(fov_deg / 2))
    assert float(rays[0, 0, 0, -1]) == pytest.approx(edge * 11 / 12)
    assert float(rays[0, 1, -1, 0]) == pytest.approx(edge * 7 / 12)  # square pixels
