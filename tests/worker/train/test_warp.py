"""Latents moved by true geometry, against what plain geometry says."""

import pytest
import torch
from boxes import camera, room_depth, surface

from worker.geometry import Cameras
from worker.train.warp import at_cell_centres, inverse_warp

H, W, CELLS = 64, 96, (8, 12)


def looking_ahead(x: float = 0.0, z: float = 0.0) -> Cameras:
    """A camera of 6 cells focal length."""
    pose = torch.eye(4, dtype=torch.float64)
    pose[0, 3], pose[2, 3] = x, z
    intrinsics = torch.tensor([[48.0, 48.0, W / 2, H / 2]], dtype=torch.float64)
    return Cameras(intrinsics, pose[None], H, W)


def turned(by: list[list[float]]) -> Cameras:
    camera_ahead = looking_ahead()
    pose = camera_ahead.world_from_camera.clone()
    pose[0, :3, :3] = torch.tensor(by)
    return Cameras(camera_ahead.intrinsics, pose, H, W)


@pytest.fixture
def latents():
    return torch.randn(1, 3, *CELLS, generator=torch.Generator().manual_seed(0))


def plane(depth_m: float) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.full((1, H, W), depth_m), torch.full((1, *CELLS), depth_m)


def test_a_cells_depth_is_that_of_its_middle():
    depth = torch.arange(H * W, dtype=torch.float32).view(1, H, W)
    cells = at_cell_centres(depth, 8)
    assert cells.shape == (1, *CELLS)
    assert cells[0, 1, 2] == depth[0, 12, 20]


def test_the_same_camera_sees_the_same_latents(latents):
    view = looking_ahead()
    depth = room_depth(camera((0, 0, 0), (1, 0.2, 1), H, W)).float()
    warped, visible, z = inverse_warp(latents, depth, view, at_cell_centres(depth, 8), view)
    assert visible.all()
    torch.testing.assert_close(warped, latents, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(z, at_cell_centres(depth, 8))


def test_a_step_aside_shifts_a_plane_by_focal_length_times_step_over_depth(latents):
    context_depth, depth = plane(2.0)
    context = looking_ahead(x=1 / 3)  # 6 cells x 1/3 m / 2 m = one cell
    warped, visible, _ = inverse_warp(latents, context_depth, context, depth, looking_ahead())
    assert visible[..., 1:].all() and not visible[..., 0].any()
    torch.testing.assert_close(warped[..., 1:], latents[..., :-1], atol=1e-5, rtol=1e-5)


def test_between_cells_tokens_are_blended(latents):
    context_depth, depth = plane(2.0)
    context = looking_ahead(x=1 / 6)  # half a cell
    warped, _, _ = inverse_warp(latents, context_depth, context, depth, looking_ahead())
    expected = (latents[..., :-1] + latents[..., 1:]) / 2
    torch.testing.assert_close(warped[..., 1:], expected, atol=1e-5, rtol=1e-5)


def test_a_roll_of_half_a_turn_flips_the_picture(latents):
    context_depth, depth = plane(2.0)
    rolled = turned([[-1.0, 0, 0], [0, -1, 0], [0, 0, 1]])
    warped, visible, _ = inverse_warp(latents, context_depth, rolled, depth, looking_ahead())
    assert visible.all()
    torch.testing.assert_close(warped, latents.flip(-1, -2), atol=1e-5, rtol=1e-5)


def test_what_lies_behind_the_context_is_not_visible(latents):
    context_depth, depth = plane(2.0)
    behind = turned([[-1.0, 0, 0], [0, 1, 0], [0, 0, -1]])
    assert not inverse_warp(latents, context_depth, behind, depth, looking_ahead())[1].any()


def test_turned_and_moved_every_cell_finds_its_own_point():
    """Tokens that spell their position on the far wall are found again by a camera elsewhere."""
    context = camera((0, 0, 0), (0, 0, 1), H, W)
    target = camera((0.7, -0.3, 0.4), (0.2, 0.2, 2.5), H, W)
    context_depth = room_depth(context)
    cells = context.resized(*CELLS)
    tokens = surface(cells, room_depth(cells)).permute(0, 3, 1, 2).float()
    views = target.resized(*CELLS)
    depth = room_depth(views)
    warped, visible, z = inverse_warp(tokens, context_depth.float(), context, depth, target)
    truth = surface(views, depth).permute(0, 3, 1, 2).float()
    within = (truth[:, :2].abs() <= tokens[:, :2].amax((2, 3), keepdim=True)).all(1) & visible
    assert 20 < int(within.sum()) < within.numel()
    error = (warped - truth).abs().amax(1)[within]
    assert float(error.max()) < 1e-4
    torch.testing.assert_close(z[visible], truth[:, 2][visible])  # it looks along z


def test_what_something_nearer_hides_is_not_visible(latents):
    context_depth, depth = plane(2.0)
    context_depth[..., : W // 2] = 1.0
    view = looking_ahead()
    _, visible, _ = inverse_warp(latents, context_depth, view, depth, view)
    assert not visible[..., : CELLS[1] // 2].any() and visible[..., CELLS[1] // 2 :].all()


def test_what_the_context_saw_through_is_not_visible(latents):
    """Where the context saw something farther, the target's point is not there."""
    context_depth, depth = plane(2.0)
    view = looking_ahead()
    assert not inverse_warp(latents, 2 * context_depth, view, depth, view)[1].any()


def test_depth_is_seen_from_the_context(latents):
    context_depth, depth = plane(1.5)
    context = looking_ahead(z=0.5)
    _, visible, z = inverse_warp(latents, context_depth, context, depth + 0.5, looking_ahead())
    torch.testing.assert_close(z, depth)
    assert visible[0, 4].tolist() == [False] * 2 + [True] * 8 + [False] * 2  # 3/4 of 12, less edges


def test_gradients_reach_the_latents(latents):
    context_depth, depth = plane(2.0)
    latents.requires_grad_()
    view = looking_ahead(x=0.1)
    inverse_warp(latents, context_depth, view, depth, looking_ahead())[0].sum().backward()
    assert latents.grad is not None and latents.grad.abs().sum() > 0
