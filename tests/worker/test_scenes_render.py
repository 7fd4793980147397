"""Rendered depth, ids and colours against what geometry says they must be."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from worker.geometry import Cameras, intrinsics_from_fov, look_at
from worker.scenes.motion import NUM_COLUMNS
from worker.scenes.paths import sample_cameras
from worker.scenes.render import render, resolve, through_lens
from worker.scenes.scene import BOX, CYLINDER, NOTHING, SPHERE, Scene, sample_scenes
from worker.scenes.shade import make_shader
from worker.scenes.trace import hit_room, make_views, rectangles, trace, trace_all

FLOOR, Z_HIGH = 3, 5


def scene_with(
    kind: int, centre: tuple[float, ...], half: tuple[float, ...], rotation: float = 0.0
) -> Scene:
    """A 6 x 3 x 8 m room that holds one primitive (surface 6)."""
    scene = sample_scenes([1], worlds={"room": 1})
    per_surface = {name: getattr(scene, name)[:, :7] for name in ("texture", "period", "phase")}
    return replace(
        scene,
        kind=torch.tensor([[kind]]),
        centre=torch.tensor([[centre]]),
        half=torch.tensor([[half]]),
        rotation=torch.tensor([[rotation]]),
        room_low=torch.tensor([[-3.0, -3.0, -4.0]]),
        room_high=torch.tensor([[3.0, 0.0, 4.0]]),
        tint=scene.tint[:, :7],
        motion=torch.zeros(1, 1, NUM_COLUMNS),
        **per_surface,
    )


def cameras_at(
    eye: tuple[float, ...], target: tuple[float, ...], height: int = 64, width: int = 96
) -> Cameras:
    pose = look_at(torch.tensor(eye), torch.tensor(target))
    intrinsics = intrinsics_from_fov(1.2, height, width)
    return Cameras(intrinsics[None, None], pose[None, None], height, width)


def world_rays(cameras: Cameras) -> Tensor:
    """(h, w, 3) world directions with camera z = 1 of the only camera."""
    return cameras.rays()[0, 0] @ cameras.world_from_camera[0, 0, :3, :3].T


@pytest.mark.parametrize("supersample", [1, 2, 3])
def test_depth_of_the_room_is_that_of_its_planes(supersample: int) -> None:
    scene = scene_with(NOTHING, (0, 0, 0), (1, 1, 1))
    cameras = cameras_at((-1.0, -1.5, -2.0), (0.3, -1.0, 4.0))
    frames = render(scene, cameras, supersample)
    rays = world_rays(cameras)
    to_wall = (4.0 + 2.0) / rays[..., 2]
    to_floor = 1.5 / rays[..., 1]
    ids = frames.instance[0, 0]
    assert {FLOOR, Z_HIGH} <= set(ids.unique().tolist()) <= set(range(6))
    inside = torch.nn.functional.max_pool2d(ids.float()[None], 3, 1, 1)[0]
    inside = (
        inside == -torch.nn.functional.max_pool2d(-ids.float()[None], 3, 1, 1)[0]
    )  # away from edges
    for face, expected in ((Z_HIGH, to_wall), (FLOOR, to_floor)):
        where = (ids == face) & inside
        assert torch.allclose(frames.depth[0, 0][where].double(), expected[where], rtol=2e-4)


def test_depth_of_a_sphere() -> None:
    scene = scene_with(SPHERE, (0.2, -1.4, 1.0), (0.6, 0.6, 0.6))
    cameras = cameras_at((0.0, -1.5, -2.0), (0.2, -1.4, 1.0))
    frames = render(scene, cameras, 1)
    d = world_rays(cameras)
    o = torch.tensor([0.0, -1.5, -2.0]) - torch.tensor([0.2, -1.4, 1.0])
    a, b, c = (d * d).sum(-1), (d * o).sum(-1), (o * o).sum() - 0.36
    expected = (-b - (b * b - a * c).clamp(min=0).sqrt()) / a
    hit = frames.instance[0, 0] == 6
    assert torch.equal(hit, b * b - a * c > 0)
    assert torch.allclose(frames.depth[0, 0][hit].double(), expected[hit], atol=1e-4)


@pytest.mark.parametrize(("kind", "rotation"), [(BOX, 0.6), (BOX, 0.0), (CYLINDER, 0.3)])
def test_hit_points_lie_on_the_surface_of_the_primitive(kind: int, rotation: float) -> None:
    centre, half = torch.tensor([0.1, -1.0, 0.5]), torch.tensor([0.5, 0.4, 0.5])
    scene = scene_with(kind, tuple(centre.tolist()), tuple(half.tolist()), rotation)
    cameras = cameras_at((-0.5, -2.2, -2.0), (0.1, -1.0, 0.5))
    frames = render(scene, cameras, 1)
    hit = frames.instance[0, 0] == 6
    assert hit.sum() > 100
    eye = cameras.world_from_camera[0, 0, :3, 3]
    local = (eye + frames.depth[0, 0, ..., None] * world_rays(cameras))[hit] - centre
    cos, sin = torch.tensor(rotation).cos(), torch.tensor(rotation).sin()
    x = cos * local[:, 0] - sin * local[:, 2]
    z = sin * local[:, 0] + cos * local[:, 2]
    side = torch.hypot(x, z) if kind == CYLINDER else torch.maximum(x.abs(), z.abs())
    beyond = torch.maximum(side - 0.5, local[:, 1].abs() - 0.4)
    assert beyond.abs().max() < 1e-3


def test_supersampled_depth_never_lies_between_two_surfaces() -> None:
    scene = scene_with(BOX, (0.0, -1.4, 0.0), (0.5, 0.5, 0.2))
    frames = render(scene, cameras_at((0.05, -1.45, -2.5), (0.05, -1.45, 4.0)), 3)
    depth, ids = frames.depth[0, 0], frames.instance[0, 0]
    box = ids == 6
    assert box.any() and not box.all()
    assert torch.allclose(depth[box], torch.tensor(2.3), atol=1e-3)  # its front face alone
    wall = ids == Z_HIGH
    assert torch.allclose(depth[wall], torch.tensor(6.5), atol=2e-3)


def test_batched_tracing_agrees_with_rectangle_by_rectangle() -> None:
    scene = sample_scenes([3, 12])
    cameras = sample_cameras(scene, None, 3, 48, 64, [1, 2])
    views = make_views(scene, cameras)
    rects = rectangles(views)
    depth, key = trace_all(views)
    for n in range(6):
        slow_depth, slow_key = trace(views, n, rects)
        same = slow_key == key[n]
        assert same.float().mean() > 0.9995  # rounding may move an edge by a pixel
        assert torch.allclose(slow_depth[same], depth[n][same], rtol=1e-4)


def test_many_frames_at_once_as_on_a_gpu_agree_with_one_by_one() -> None:
    scene = sample_scenes([3, 12], worlds={"room": 1})
    cameras = sample_cameras(scene, None, 2, 48, 64, [1, 2])
    slow = render(scene, cameras)
    views = make_views(scene, cameras.resized(96, 128))
    rgb, depth, instance = resolve(views, make_shader(scene), *trace_all(views), 2)
    same = (instance == slow.instance.flatten(0, 1)) & (
        (depth / slow.depth.flatten(0, 1) - 1).abs() < 1e-4
    )
    assert same.float().mean() > 0.999
    seen = through_lens(rgb * 2 - 1)
    assert (seen - slow.rgb.flatten(0, 1)).abs().mean() < 1e-4


def test_scenes_rendered_together_look_as_they_do_alone() -> None:
    scene = sample_scenes([3, 12])
    cameras = sample_cameras(scene, "orbit", 4, 32, 48, [5, 6])
    together = render(scene, cameras)
    apart = [render(scene[s : s + 1], cameras[s : s + 1]) for s in range(2)]
    for field in fields(together):
        joined = torch.cat([getattr(part, field.name) for part in apart])
        assert torch.equal(getattr(together, field.name), joined)


def test_range_shapes_and_types() -> None:
    scene = sample_scenes([8, 9], worlds={"room": 1})
    frames = render(scene, sample_cameras(scene, "strafe", 3, 32, 48, [8, 9]))
    assert frames.rgb.shape == (2, 3, 3, 32, 48) and frames.rgb.dtype == torch.float32
    assert frames.depth.shape == (2, 3, 32, 48) and frames.instance.dtype == torch.int16
    assert frames.rgb.min() >= -1 and frames.rgb.max() <= 1
    assert -0.4 < frames.rgb.mean() < 0.7 and frames.rgb.std() > 0.1  # lit, and not flat
    assert frames.depth.min() > 0.25 and frames.depth.max() < 15
    assert frames.instance.min() >= 0 and frames.instance.max() < scene.texture.shape[1]


def test_a_surface_point_keeps_its_colour_when_the_camera_moves() -> None:
    """Warp the second view into the first by depth: colours agree where both see a surface."""
    scene = sample_scenes([21, 22, 23])
    cameras = sample_cameras(scene, "strafe", 5, 96, 128, [1, 2, 3])
    frames = render(scene, cameras)
    for s in range(3):
        first, second = cameras[s][0:1], cameras[s][1:2]
        points = first.rays()[0] * frames.depth[s, 0, ..., None]
        pose = second.camera_from_world[0] @ first.world_from_camera[0]
        moved = points @ pose[:3, :3].T + pose[:3, 3]
        fx, fy, cx, cy = second.intrinsics[0]
        u, v = moved[..., 0] / moved[..., 2] * fx + cx, moved[..., 1] / moved[..., 2] * fy + cy
        grid = torch.stack([u / 64 - 1, v / 48 - 1], -1)[None].float()
        other = torch.cat([frames.rgb[s, 1], frames.depth[s, 1][None]])
        warped = torch.nn.functional.grid_sample(other[None], grid, align_corners=False)[0]
        seen = (warped[3] - moved[..., 2]).abs() < 0.01 * moved[..., 2]
        assert seen.float().mean() > 0.5
        error = (warped[:3] - frames.rgb[s, 0]).abs()[:, seen]
        assert error.median() < 0.02


def test_a_camera_outside_the_room_sees_nothing_and_nothing_breaks() -> None:
    scene = scene_with(SPHERE, (0, -1, 0), (0.3, 0.3, 0.3))
    frames = render(scene, cameras_at((0.0, -1.5, -9.0), (0.0, -1.5, -20.0)))
    assert (frames.depth == 0).all() and frames.rgb.isfinite().all()


def test_wrong_shapes_are_refused() -> None:
    scene = sample_scenes([1])
    with pytest.raises(ValueError, match="leading shape"):
        render(scene, cameras_at((0, -1, 0), (0, -1, 1))[0])
    with pytest.raises(ValueError, match="supersample"):
        render(scene, cameras_at((0, -1, 0), (0, -1, 1)), 0)


def test_the_sky_has_a_colour_and_no_depth() -> None:
    scene = sample_scenes([2], worlds={"court": 1})
    frames = render(scene, cameras_at((0.0, -1.6, 0.0), (0.3, -4.0, 3.0)))
    sky = frames.instance == 2
    assert sky.float().mean() > 0.2
    assert (frames.depth[sky] == 0).all() and (frames.depth[~sky] > 0).all()
    assert frames.rgb[0, 0][:, sky[0, 0]].mean() > -0.9 and frames.rgb.isfinite().all()


def test_motion_masks_are_exactly_what_differs_from_the_still_world() -> None:
    """Nothing that moves casts a shadow, so all other pixels are those of the static twin."""
    seeds = [6, 13]
    lively, still = sample_scenes(seeds, dynamic=True), sample_scenes(seeds)
    cameras = sample_cameras(lively, None, 4, 48, 64, seeds)
    frames, twin = render(lively, cameras), render(still, cameras)
    assert frames.moving.any() and not twin.moving.any()
    posts = frames.instance.long() >= 6 + still.kind.shape[1]  # stands of movers do not move
    apart = frames.moving | posts
    assert torch.equal(frames.depth[~apart], twin.depth[~apart])
    assert (frames.depth[frames.moving] < twin.depth[frames.moving]).all()
    assert torch.equal(frames.instance[~apart], twin.instance[~apart])


def test_time_moves_things_and_may_be_given() -> None:
    scene = sample_scenes([14], dynamic=True)
    cameras = sample_cameras(scene, None, 8, 48, 64, [14])
    fixed = cameras[:, :1]
    fixed = Cameras(
        fixed.intrinsics.expand(1, 3, 4), fixed.world_from_camera.expand(1, 3, 4, 4), 48, 64
    )
    frames = render(scene, fixed, times=torch.tensor([0.0, 6.0, 12.0]))
    assert not torch.equal(frames.moving[0, 0], frames.moving[0, 2])
    later = render(scene, fixed, times=torch.tensor([12.0, 0.0, 6.0]))
    assert torch.equal(later.rgb[:, 1], frames.rgb[:, 0])
    assert torch.equal(later.depth[:, 0], frames.depth[:, 2])
    with pytest.raises(ValueError, match="one per frame"):
        render(scene, fixed, times=torch.arange(2))


def test_moving_scenes_agree_when_many_frames_are_traced_at_once() -> None:
    scene = sample_scenes([3, 12], dynamic=True)
    cameras = sample_cameras(scene, None, 2, 48, 64, [1, 2])
    slow, times = render(scene, cameras), torch.arange(2)
    views = make_views(scene, cameras.resized(96, 128), times)
    rgb, _, instance = resolve(views, make_shader(scene, times), *trace_all(views), 2)
    same = instance == slow.instance.flatten(0, 1)
    assert same.float().mean() > 0.999
    seen = through_lens(rgb * 2 - 1)
    assert (seen - slow.rgb.flatten(0, 1)).abs().mean() < 1e-4


def test_rays_exactly_along_a_wall_meet_the_others() -> None:
    x = torch.tensor([0.0, -0.0, 1.0])
    depth, key = hit_room([x, torch.zeros(3), torch.ones(3)], [0.5, 0.0, 0.0], [1.0, 1.0, 2.0])
    assert depth.tolist() == [2.0, 2.0, 0.5]
    assert (key >> 2).tolist() == [Z_HIGH, Z_HIGH, 1]
