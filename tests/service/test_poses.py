"""Axes, validation with figures, and actions that end where they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import InvalidRequest
from service.poses import (
    AXES,
    Action,
    expand,
    flat,
    pose_from_matrix,
    pose_from_quaternion,
)

IDENTITY = flat(np.eye(4))


def turned(axis: str, angle_deg: float) -> np.ndarray:
    """A right-handed rotation about one axis, (4, 4)."""
    c, s = math.cos(math.radians(angle_deg)), math.sin(math.radians(angle_deg))
    first, second = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    pose = np.eye(4)
    pose[first, first] = pose[second, second] = c
    pose[first, second], pose[second, first] = -s, s
    return pose


# One metre forward and a turn of the head to the right, written in each convention.
FORWARD = {
    "opencv": (0, 0, 1),
    "opengl": (0, 0, -1),
    "unity": (0, 0, 1),
    "unreal": (1, 0, 0),
    "ros": (1, 0, 0),
}
TURN_RIGHT = {
    "opencv": turned("y", 30),
    "opengl": turned("y", -30),
    "unity": turned("y", 30),
    "unreal": turned("z", 30),
    "ros": turned("z", -30),
}


@pytest.mark.parametrize("axes", AXES)
def test_forward_and_right_mean_the_same_in_every_convention(axes: str) -> None:
    pose = TURN_RIGHT[axes].copy()
    pose[:3, 3] = FORWARD[axes]
    converted = pose_from_matrix(flat(pose), axes, "pose")
    np.testing.assert_allclose(converted[:3, 3], (0, 0, 1), atol=1e-12)
    forward = converted[:3, 2]
    np.testing.assert_allclose(forward, (math.sin(math.pi / 6), 0, math.cos(math.pi / 6)))
    assert np.linalg.det(converted[:3, :3]) == pytest.approx(1)


def test_quaternion_and_matrix_agree() -> None:
    half = math.radians(15)
    by_quaternion = pose_from_quaternion(
        [1, 2, 3], [0, math.sin(half), 0, math.cos(half)], "unity", "pose"
    )
    matrix = turned("y", 30)
    matrix[:3, 3] = 1, 2, 3
    np.testing.assert_allclose(
        by_quaternion, pose_from_matrix(flat(matrix), "unity", "pose"), atol=1e-12
    )


def broken(row: int, column: int, value: float) -> list[float]:
    matrix = np.eye(4)
    matrix[row, column] = value
    return flat(matrix)


@pytest.mark.parametrize(
    ("values", "seen"),
    [
        (IDENTITY[:12], "12 numbers"),
        (broken(0, 1, math.nan), "nan at row 0, column 1"),
        (broken(2, 3, math.inf), "inf at row 2, column 3"),
        (broken(0, 0, 1.5), "max |R^T R - I| = 1.25"),
        (broken(0, 0, -1), "det R = -1"),
        (broken(0, 0, 1e300), "max |R^T R - I|"),
        (broken(3, 0, 5), "last row [5.0, 0.0, 0.0, 1.0]"),
        (broken(0, 3, 1e6), "position [1000000.0"),
    ],
)
def test_a_bad_matrix_is_refused_with_what_was_seen(values: list[float], seen: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        pose_from_matrix(values, "opencv", "poses[3].matrix")
    field = caught.value.fields[0]
    assert seen in field.seen
    assert field.field == "poses[3].matrix"
    assert field.allowed


@pytest.mark.parametrize(
    ("position", "quaternion", "field"),
    [
        ([0, 0], [0, 0, 0, 1], "pose.position"),
        ([0, math.nan, 0], [0, 0, 0, 1], "pose.position"),
        ([0, 0, 0], [0, 0, 1], "pose.quaternion"),
        ([0, 0, 0], [0, 0, 0, 2], "pose.quaternion"),
        ([0, 0, 0], [0, 0, 0, math.inf], "pose.quaternion"),
        ([0, 0, 0], [0, 0, 1e308, 1e308], "pose.quaternion"),
    ],
)
def test_a_bad_quaternion_is_refused(
    position: list[float], quaternion: list[float], field: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        pose_from_quaternion(position, quaternion, "opencv", "pose")
    assert caught.value.fields[0].field == field


def test_float32_noise_is_rounded_to_the_nearest_rotation() -> None:
    noisy = turned("x", 20) + np.pad(np.full((3, 3), 1e-5), ((0, 1), (0, 1)))
    rotation = pose_from_matrix(flat(noisy), "opencv", "pose")[:3, :3]
    np.testing.assert_allclose(rotation.T @ rotation, np.eye(3), atol=1e-12)


def test_actions_take_as_many_frames_as_their_speed_says() -> None:
    path = expand(np.eye(4), [Action(forward_m=1.5), Action(yaw_deg=30)], 0.1, 4.0, 1000)
    assert len(path) == 15 + 8
    np.testing.assert_allclose(path[14][:3, 3], (0, 0, 1.5), atol=1e-9)
    steps = np.linalg.norm(np.diff(path[:15, :3, 3], axis=0), axis=1)
    np.testing.assert_allclose(steps, 0.1)
    np.testing.assert_allclose(path[-1][:3, 2], (0.5, 0, math.cos(math.pi / 6)), atol=1e-9)


def test_pitch_up_looks_up_and_walking_stays_on_the_ground() -> None:
    path = expand(np.eye(4), [Action(pitch_deg=30), Action(forward_m=1)], 0.1, 4.0, 1000)
    assert path[-1][1, 2] == pytest.approx(-0.5)  # up is -y
    np.testing.assert_allclose(path[-1][:3, 3], (0, 0, 1), atol=1e-9)


def test_up_is_the_worlds_up_and_right_is_to_the_right() -> None:
    path = expand(np.eye(4), [Action(up_m=0.5), Action(right_m=0.3)], 0.1, 4.0, 1000)
    np.testing.assert_allclose(path[-1][:3, 3], (0.3, -0.5, 0), atol=1e-9)


@given(
    st.lists(
        st.builds(
            Action,
            forward_m=st.floats(-3, 3),
            right_m=st.floats(-3, 3),
            yaw_deg=st.floats(-90, 90),
            pitch_deg=st.floats(-20, 20),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_a_walk_and_its_opposite_return_to_the_start(actions: list[Action]) -> None:
    back = [
        Action(-a.forward_m, -a.right_m, -a.up_m, -a.yaw_deg, -a.pitch_deg) for a in actions[::-1]
    ]
    path = expand(np.eye(4), [*actions, *back], 0.1, 4.0, 10_000)
    np.testing.assert_allclose(path[-1], np.eye(4), atol=1e-6)


def test_a_path_that_is_too_long_is_refused_with_its_length() -> None:
    with pytest.raises(InvalidRequest, match="1010 frames") as caught:
        expand(np.eye(4), [Action(forward_m=100), Action(right_m=1)], 0.1, 4.0, 1000)
    assert "at most 1000" in caught.value.fields[0].allowed


@pytest.mark.parametrize("seed", range(20))
def test_exact_poses_pass_unchanged_and_others_are_repaired_to_the_same(seed: int) -> None:
    """The quick way and the thorough one agree, whichever a pose takes."""
    random = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(random.normal(size=(3, 3)))
    pose = np.eye(4)
    pose[:3, :3] = rotation * np.sign(np.linalg.det(rotation))
    pose[:3, 3] = random.normal(size=3)
    quick = pose_from_matrix(flat(pose), "opencv", "pose")
    assert np.array_equal(quick, pose)
    rounded = pose.astype(np.float32).astype(np.float64)
    repaired = pose_from_matrix(flat(rounded), "opencv", "pose")
    assert np.abs(repaired - pose).max() < 1e-6
    assert np.abs(repaired[:3, :3].T @ repaired[:3, :3] - np.eye(3)).max() < 1e-14


@pytest.mark.parametrize("number", [0, 3, 5, 10, 11, 15])
@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, 1e6])
def test_no_spoilt_pose_takes_the_quick_way(number: int, value: float) -> None:
    values = flat(np.eye(4))
    values[number] = value
    if number in (3, 11) and value == -1.0:
        assert pose_from_matrix(values, "opencv", "pose").flat[number] == -1.0
        return
    with pytest.raises(InvalidRequest):
        pose_from_matrix(values, "opencv", "pose")
