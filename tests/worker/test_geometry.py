"""Cameras and lifting against closed forms and the reference's vectors."""

import math

import oracle
import pytest
import torch
from boxes import camera, recentred, room_depth

from worker.geometry import Cameras, cat_cameras, intrinsics_from_fov, lift, look_at, relief
from worker.memory.sight import finer_than
from worker.placed import CLOSER, FINER
from worker.projection import relief_code, relief_of

GRID = (16, 24)


def plane_depth(view: Cameras, normal: tuple[float, float, float], offset: float) -> torch.Tensor:
    """z-depth of the camera-frame plane n . x = offset at every pixel's centre."""
    return offset / (view.rays() @ torch.tensor(normal, dtype=torch.float64))


def test_a_resized_camera_sees_the_same_rays():
    view = camera((0.0, 0.0, 0.0), (0.0, 0.0, 1.0))
    fine, coarse = view.rays(), view.resized(*GRID).rays()
    middle = fine.unfold(1, 8, 8).unfold(2, 8, 8).mean(dim=(-1, -2))
    torch.testing.assert_close(coarse, middle)


def test_look_at_faces_the_target_with_y_down():
    pose = look_at(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 2.0, 8.0]))
    torch.testing.assert_close(pose[:3, :3], torch.eye(3, dtype=torch.float64))


def test_camera_from_world_is_the_inverse():
    view = camera((0.3, -0.4, 9.0), (2.0, 1.0, -1.0))
    identity = view.camera_from_world @ view.world_from_camera
    torch.testing.assert_close(identity[0], torch.eye(4, dtype=torch.float64))


def test_field_of_view_spans_the_width():
    focal, _, cx, _ = intrinsics_from_fov(math.radians(90), 128, 192)
    assert focal == pytest.approx(96) and cx == 96


def test_cameras_of_two_sizes_are_not_joined():
    with pytest.raises(ValueError, match="different image sizes"):
        cat_cameras([camera((0, 0, 0), (0, 0, 1.0)), camera((0, 0, 0), (0, 0, 1.0), height=64)])


@pytest.mark.parametrize("normal", [(0.0, 0.0, 1.0), (0.3, 0.0, 1.0), (0.4, -0.6, 1.0)])
def test_a_plane_is_lifted_onto_itself(normal):
    view = camera((0.0, 0.0, 0.0), (0.0, 0.0, 1.0))
    lifted = lift(plane_depth(view, normal, 3.0), view, GRID)
    assert lifted.valid.all()
    offsets = lifted.positions.double() @ torch.tensor(normal, dtype=torch.float64)
    torch.testing.assert_close(offsets, torch.full_like(offsets, 3.0), rtol=1e-5, atol=0)


def test_slant_is_the_depth_that_a_cell_spans():
    view = camera((0.0, 0.0, 0.0), (0.0, 0.0, 1.0))
    lifted = lift(plane_depth(view, (0.5, 0.0, 1.0), 3.0), view, GRID)
    neighbours = lifted.depth.diff(dim=2).abs()
    spans = lifted.recession
    between = torch.minimum(spans[:, :, 1:], spans[:, :, :-1])
    assert (neighbours / between - 1).abs().max() < 0.2
    assert lift(torch.full((1, 128, 192), 2.0), view, GRID).recession.max() < 1e-4


@pytest.mark.parametrize("normal", [(0.0, 0.0, 1.0), (0.3, 0.0, 1.0), (0.4, -0.6, 1.0)])
@pytest.mark.parametrize("is_coarse", [False, True])
def test_the_parts_of_cells_lie_on_their_plane(normal, is_coarse):
    view = camera((0.0, 0.0, 0.0), (0.0, 0.0, 1.0))
    depth = plane_depth(view, normal, 3.0)
    lifted, finer = lift(depth, view, GRID), lift(depth, view, finer_than(GRID))
    parts = lifted.depth[..., None] * relief(lifted.depth if is_coarse else depth, lifted.depth)
    parts = parts.view(1, *GRID, FINER, FINER).transpose(2, 3).reshape(finer.depth.shape)
    inner = (0, slice(FINER, -FINER), slice(FINER, -FINER)) if is_coarse else ...
    torch.testing.assert_close(parts[inner], finer.depth[inner], rtol=1e-5, atol=0)


def test_parts_beyond_an_edge_lie_where_they_were_measured():
    depth = torch.full((1, 16, 16), 2.0)
    depth[:, :, 4:8], depth[:, :4, 8:] = 5.0, 0.0
    cells = lift(depth, camera((0.0, 0.0, 0.0), (0.0, 0.0, 1.0), 16, 16), (2, 2)).depth
    assert cells.tolist() == [[[2.0, 2.0], [2.0, 2.0]]]
    found = relief(depth, cells)
    torch.testing.assert_close(found[0, 0, 0], torch.tensor([1.0, 1.0, 2.5, 2.5]).repeat(4))
    assert (found[0, 0, 1] == 1).all()
    coarse = torch.tensor([[[2.0, 2.0, 0.0, 5.0, 5.1]]])
    assert (relief(coarse, coarse) == 1).all()


def test_parts_that_lie_between_what_was_measured_never_average_two_surfaces():
    """A map of quarters of cells: a slope is followed, an edge stays one."""
    far = torch.linspace(2.0, 2.2, 5 * CLOSER).expand(1, CLOSER, -1).clone()
    far[..., 6:] *= 2
    found = relief(far, far[:, 1::CLOSER, 1::CLOSER]).view(5, FINER, FINER)
    torch.testing.assert_close(found, found[:, :1].expand_as(found))
    depth = found[:, 0] * far[0, 1, 1::CLOSER, None]
    assert (depth[1].diff() > 0).all() and depth[1, -1] < far[0, 0, 4]
    assert ((depth < 2.2) | (depth > 4)).all()


def test_a_masked_pixel_has_no_say_in_the_parts_of_its_cell():
    depth = torch.full((1, 16, 16), 2.0)
    depth[:, :, 2:4], mask = 1.0, torch.zeros(1, 16, 16, dtype=torch.bool)
    mask[:, :, 2:4] = True
    cells = lift(depth, camera((0.0, 0.0, 0.0), (0.0, 0.0, 1.0), 16, 16), (2, 2), mask).depth
    assert (cells == 2).all() and (relief(depth, cells, mask) == 1).all()
    assert (relief(depth, cells)[0, :, 0, 1::FINER] == 0.5).all()


def test_a_stored_relief_is_as_fine_as_it_is_flat():
    ratio = torch.tensor([1 / 20, 0.2, 0.5, 0.9, 0.99, 1.0, 1.01, 1.1, 2.0, 5.0, 20.0])
    kept = relief_of(relief_code(ratio))
    off = (kept / ratio).log().abs()
    assert off[1:-1].max() < 0.012 and off[3:8].max() < 0.004 and kept[5] == 1
    assert kept[0] > 1 / 9 and kept[-1] < 9


def test_a_seam_of_nothing_and_a_wall_leaves_no_floaters():
    view = camera((0.0, 0.0, 0.0), (0.0, 0.0, 1.0))
    for column in range(88, 97):
        depth = torch.full((1, 128, 192), 4.0)
        depth[:, :, :column] = 0.0
        z = lift(depth, view, GRID).depth
        assert not ((z > 0.2) & (z < 3.8)).any()
        assert (z[:, :, 12:] == 4.0).all() and (z[:, :, :11] == 0).all()


def test_a_cell_on_an_edge_takes_the_nearer_surface_and_never_an_average():
    view = camera((0.0, 0.0, 0.0), (0.0, 0.0, 1.0))
    for column in range(88, 97):  # the near surface fills 0 .. 8 of the cell's 8 columns
        depth = torch.full((1, 128, 192), 4.0)
        depth[:, :, 88:column] = 1.0
        z = lift(depth, view, GRID).depth[:, :, 11]
        assert (z == (1.0 if column >= 90 else 4.0)).all()


@pytest.mark.parametrize("invalid", [0.0, -1.0, math.nan, math.inf])
def test_invalid_depth_is_not_lifted(invalid):
    lifted = lift(torch.full((1, 128, 192), invalid), camera((0, 0, 0), (0, 0, 1.0)), GRID)
    assert not lifted.valid.any() and (lifted.depth == 0).all()


@pytest.mark.parametrize(("rows", "excluded"), [(3, False), (4, True), (5, True)])
def test_a_mask_counts_by_area(rows, excluded):
    mask = torch.zeros(1, 128, 192, dtype=torch.bool)
    mask[:, 8 : 8 + rows, :] = True  # of the 8 pixel rows of cell row 1, not its first corner only
    lifted = lift(torch.full((1, 128, 192), 2.0), camera((0, 0, 0), (0, 0, 1.0)), GRID, mask)
    assert lifted.valid[:, 1].any() != excluded
    assert lifted.valid[:, 0].all() and lifted.valid[:, 2:].all()


def test_a_mask_may_have_the_grids_size():
    mask = torch.zeros(1, *GRID, dtype=torch.bool)
    mask[0, 3, 5] = True
    lifted = lift(torch.full((1, 128, 192), 2.0), camera((0, 0, 0), (0, 0, 1.0)), GRID, mask)
    assert torch.equal(~lifted.valid, mask)


def test_a_mask_may_be_finer_than_the_depth():
    mask = torch.zeros(1, 128, 192, dtype=torch.bool)
    mask[:, :5, :], mask[:, 8:11, :] = True, True
    lifted = lift(torch.full((1, *GRID), 2.0), camera((0, 0, 0), (0, 0, 1.0)), GRID, mask)
    assert not lifted.valid[:, 0].any() and lifted.valid[:, 1:].all()


def test_masked_pixels_do_not_enter_the_depth():
    depth = torch.full((1, 128, 192), 3.0)
    mask = torch.zeros(1, 128, 192, dtype=torch.bool)
    mask[:, ::8] = True
    depth[mask] = 2.9
    lifted = lift(depth, camera((0, 0, 0), (0, 0, 1.0)), GRID, mask)
    torch.testing.assert_close(lifted.depth, torch.full((1, *GRID), 3.0))


@pytest.mark.parametrize("size", [(16, 24), (100, 150), (90, 24)])
def test_any_depth_resolution_is_accepted(size):
    view = camera((0.2, 0.0, -1.0), (0.0, 0.2, 2.0))
    depth = room_depth(view.resized(*size))
    lifted = lift(depth, view, GRID)
    truth = room_depth(view.resized(*GRID))
    assert lifted.valid.all()
    assert ((lifted.depth - truth).abs() / truth).median() < 0.02


def test_a_world_far_away_is_as_sharp():
    depth = room_depth(camera((0.25, 0.0, -1.0), (0.0, 0.25, 2.0)))
    view = camera((0.25, 0.0, -1.0), (0.0, 0.25, 2.0))
    offset = torch.tensor([10_000.0, 0.0, -10_000.0], dtype=torch.float64)
    far = recentred(view, -offset)
    here = lift(depth, view, GRID, origin=view.world_from_camera[0, :3, 3])
    there = lift(depth, far, GRID, origin=far.world_from_camera[0, :3, 3])
    assert torch.equal(here.positions, there.positions)


@pytest.mark.parametrize("name", oracle.CASES)
def test_reference_convention_reproduces_the_public_points(name):
    case = oracle.load(name)
    mask = torch.zeros_like(case["depths"], dtype=torch.bool)
    mask[0] = case["mask0"]
    grid = case["exact_z"].shape
    lifted = lift(case["depths"], oracle.cameras(case), grid, mask, convention="reference")
    assert torch.equal(lifted.valid[0].flatten(), case["valid0"])
    rest = lifted.positions[1:][lifted.valid[1:]]
    ours = torch.cat([lifted.positions[0].reshape(-1, 3), rest])[case["valid"]]
    expected = case["points"][case["valid"]]
    assert ((ours - expected).norm(dim=-1) / expected.norm(dim=-1)).max() < 1e-5


def test_wrong_shapes_are_named():
    view = camera((0, 0, 0), (0, 0, 1.0))
    with pytest.raises(ValueError, match="one camera per frame"):
        lift(torch.ones(2, 128, 192), view, GRID)
    with pytest.raises(ValueError, match=r"depth .* at least one value per cell"):
        lift(torch.ones(1, 8, 12), view, GRID)
    with pytest.raises(ValueError, match=r"mask .* at least one value per cell"):
        lift(torch.ones(1, 128, 192), view, GRID, torch.zeros(1, 3, 3, dtype=torch.bool))
