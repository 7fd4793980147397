"""Loops come back over their own poses; nobody walks through walls."""

from __future__ import annotations

import math

import pytest
import torch

from worker.scenes.clearance import clearance
from worker.scenes.paths import (
    CLEARANCE_M,
    FOV_RAD,
    LOOP_KINDS,
    WALK_FOV_RAD,
    LoopKind,
    closed_loop,
    random_walk,
    sample_cameras,
)
from worker.scenes.scene import BOX, SPHERE, Scene, sample_scenes


@pytest.fixture(scope="module")
def scene() -> Scene:
    return sample_scenes([31, 32, 33, 34])


@pytest.mark.parametrize("kind", LOOP_KINDS)
@pytest.mark.parametrize("num_frames", [1, 8, 33])
def test_a_loop_returns_over_the_same_poses(scene: Scene, kind: LoopKind, num_frames: int) -> None:
    poses = closed_loop(scene, 0, kind, num_frames, seed=5)
    assert poses.shape == (num_frames, 4, 4) and poses.dtype == torch.float64
    assert torch.equal(poses, poses.flip(0))
    assert torch.equal(poses, closed_loop(scene, 0, kind, num_frames, seed=5))


def test_loops_are_as_large_as_promised(scene: Scene) -> None:
    for kind in LOOP_KINDS:
        poses = closed_loop(scene, 1, kind, 32, seed=2)[:16]
        eye, forward = poses[:, :3, 3], poses[:, :3, 2]
        length = float(eye.diff(dim=0).norm(dim=-1).sum())
        flat = torch.nn.functional.normalize(forward[:, ::2], dim=-1)
        turn = math.degrees(float((flat[1:] * flat[:-1]).sum(-1).clamp(-1, 1).acos().sum()))
        if kind == "yaw":
            assert length == 0 and 45 < turn < 95
        else:
            assert 0.2 < length < 4
        if kind == "strafe":
            assert turn < 1e-3


@pytest.mark.parametrize("kind", [None, *LOOP_KINDS])
def test_cameras_keep_clear_of_everything(scene: Scene, kind: LoopKind | None) -> None:
    cameras = sample_cameras(scene, kind, 16, 64, 96, seeds=[1, 2, 3, 4])
    assert cameras.shape == (4, 16)
    eye = cameras.world_from_camera[..., :3, 3]
    for index in range(4):
        assert clearance(scene, index, eye[index]).min() >= CLEARANCE_M
    fov = 2 * torch.atan(0.5 * 96 / cameras.intrinsics[..., 0])
    low, high = WALK_FOV_RAD if kind is None else FOV_RAD
    assert (fov >= low).all() and (fov <= high).all()
    rotation = cameras.world_from_camera[..., :3, :3]
    assert torch.allclose(rotation @ rotation.mT, torch.eye(3).double().expand_as(rotation))


def test_a_walk_is_smooth(scene: Scene) -> None:
    for index in range(4):
        poses = random_walk(scene, index, 40, seed=index)
        step = poses[:, :3, 3].diff(dim=0).norm(dim=-1)
        assert step.max() <= 0.25 and (step.diff().abs() < 0.05).all()
        forward = poses[:, :3, 2]
        turn = torch.rad2deg((forward[1:] * forward[:-1]).sum(-1).clamp(-1, 1).acos())
        assert turn.max() <= 8.5 and turn.mean() > 0.5


def test_a_path_does_not_depend_on_its_batch(scene: Scene) -> None:
    alone = sample_scenes([33])
    for kind in (None, "dolly", "orbit"):
        batch = sample_cameras(scene, kind, 12, 64, 96, seeds=[4, 5, 6, 7])[2]
        single = sample_cameras(alone, kind, 12, 64, 96, seeds=[6])[0]
        assert torch.equal(batch.world_from_camera, single.world_from_camera)
        assert torch.equal(batch.intrinsics, single.intrinsics)


def test_clearance_of_known_places() -> None:
    scene = sample_scenes([3])
    scene = Scene(
        **{
            **{name: getattr(scene, name) for name in scene.__dataclass_fields__},
            "room_low": torch.tensor([[-5.0, -5.0, -5.0]]),
            "room_high": torch.tensor([[5.0, 0.0, 5.0]]),
            "kind": torch.tensor([[BOX, SPHERE]]),
            "centre": torch.tensor([[[2.0, -2.0, 0.0], [-2.0, -2.0, 0.0]]]),
            "half": torch.tensor([[[0.5, 0.5, 1.0], [0.5, 0.5, 0.5]]]),
            "rotation": torch.tensor([[math.pi / 2, 0.0]]),  # the box is 1 m long along x now
        }
    )
    points = [[0.0, -2.0, 0.0], [2.0, -2.0, 1.5], [2.0, -2.0, 0.0], [-2.0, -2.0, 0.2], [0, 1, 0]]
    expected = torch.tensor([1.0, 1.0, -0.5, -0.3, -1.0])
    assert torch.allclose(clearance(scene, 0, torch.tensor(points)), expected, atol=1e-5)


def test_unknown_loops_and_missing_seeds_are_refused(scene: Scene) -> None:
    with pytest.raises(ValueError, match="unknown loop"):
        closed_loop(scene, 0, "zigzag", 8, seed=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one seed per scene"):
        sample_cameras(scene, None, 8, 64, 96, seeds=[1])
