"""Camera poses at the edge: any engine's axes in, OpenCV `world_from_camera` out, and actions
expanded to paths.

What: a pose arrives as a 4x4 row-major matrix or as position + quaternion, in the axes of OpenCV,
OpenGL, Unity, Unreal or ROS, and is converted once, here. How: every convention is one signed
permutation B of the axes (world and camera alike), so a pose M becomes B M B^-1; B may be left-
handed, the rotation stays a rotation. Lengths are metres in all of them (Unreal's centimetres are
for the client to divide). Actions move a walker: forward and right follow the heading on the
ground, up is the world's up. Trade-off: constant speed within an action, so that the number of
frames is predictable.

Axis legend: n poses; a pose is (4, 4) float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from service.errors import FieldProblem, InvalidRequest

Array = NDArray[np.float64]
F = TypeVar("F", np.float32, np.float64)

MAX_DISTANCE_M = 10_000.0  # float32 points keep a millimetre up to here
EXACT = 1e-13  # a rotation that was computed in float64, or written out in full
RIGID_TOLERANCE = 1e-3  # float32 poses that went through a few products are well inside
DEFAULT_STEP_M = 0.1
DEFAULT_STEP_DEG = 4.0

# Rows say which of the convention's axes is OpenCV's right, down and forward.
_OPENCV_FROM: dict[str, Array] = {
    "opencv": np.diag([1.0, 1.0, 1.0]),
    "opengl": np.diag([1.0, -1.0, -1.0]),
    "unity": np.diag([1.0, -1.0, 1.0]),
    "unreal": np.array([[0.0, 1.0, 0.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0]]),
    "ros": np.array([[0.0, -1.0, 0.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0]]),
}
AXES = tuple(_OPENCV_FROM)


@dataclass(frozen=True)
class Action:
    """One movement; every part of it happens at the same time. Positive yaw turns right, positive
    pitch looks up.
    """

    forward_m: float = 0.0
    right_m: float = 0.0
    up_m: float = 0.0
    yaw_deg: float = 0.0
    pitch_deg: float = 0.0

    def num_frames(self, step_m: float, step_deg: float) -> int:
        """Frames this takes at so many metres and degrees per frame; at least one."""
        distance_m = math.hypot(self.forward_m, self.right_m, self.up_m)
        angle_deg = max(abs(self.yaw_deg), abs(self.pitch_deg))
        return max(1, math.ceil(max(distance_m / step_m, angle_deg / step_deg) - 1e-9))


def pose_from_matrix(values: Sequence[float], axes: str, field: str) -> Array:
    """16 numbers, row-major -> (4, 4) OpenCV pose; InvalidRequest names `field` if it is no rigid
    transform.
    """
    if len(values) != 16:
        raise _invalid(field, f"{len(values)} numbers", "16 numbers, row-major 4x4")
    matrix = np.asarray(values, dtype=np.float64).reshape(4, 4)
    if axes == "opencv" and is_exact(values):
        return matrix
    if not np.isfinite(matrix).all():
        row, column = (int(index) for index in np.argwhere(~np.isfinite(matrix))[0])
        raise _invalid(
            field, f"{matrix[row, column]} at row {row}, column {column}", "finite numbers"
        )
    if np.abs(matrix[3] - (0.0, 0.0, 0.0, 1.0)).max() > 1e-6:
        raise _invalid(
            field,
            f"last row {matrix[3].tolist()}",
            "last row [0, 0, 0, 1]; the matrix is row-major",
        )
    return _converted(_nearest_rotation(matrix[:3, :3], field), matrix[:3, 3], axes, field)


def pose_from_quaternion(
    position_m: Sequence[float], quaternion_xyzw: Sequence[float], axes: str, field: str
) -> Array:
    """Position (3) and quaternion (x, y, z, w) -> (4, 4) OpenCV pose."""
    position = np.asarray(position_m, dtype=np.float64)
    quaternion = np.asarray(quaternion_xyzw, dtype=np.float64)
    if position.shape != (3,) or not np.isfinite(position).all():
        raise _invalid(f"{field}.position", str(position.tolist()), "3 finite numbers, metres")
    if quaternion.shape != (4,) or not np.isfinite(quaternion).all():
        raise _invalid(
            f"{field}.quaternion", str(quaternion.tolist()), "4 finite numbers x, y, z, w"
        )
    with np.errstate(over="ignore"):  # what is that long is refused below
        norm = float(np.linalg.norm(quaternion))
    if abs(norm - 1.0) > RIGID_TOLERANCE:
        raise _invalid(
            f"{field}.quaternion", f"length {norm:.6g}", f"length 1 within {RIGID_TOLERANCE:g}"
        )
    return _converted(_rotation(quaternion / norm), position, axes, field)


def positions_in(axes: str, positions_m: NDArray[F]) -> NDArray[F]:
    """(n, 3) positions in OpenCV axes -> the same ones in those of another convention."""
    return positions_m @ _OPENCV_FROM[axes].astype(positions_m.dtype)


def expand(
    start: Array, actions: Sequence[Action], step_m: float, step_deg: float, max_poses: int
) -> Array:
    """The poses (n, 4, 4) that walk `actions` from `start`, `start` itself not included.

    Raises InvalidRequest before anything is allocated when the path would be longer than
    `max_poses`.
    """
    counts = [action.num_frames(step_m, step_deg) for action in actions]
    if sum(counts) > max_poses:
        raise _invalid(
            "actions",
            f"{sum(counts)} frames at {step_m:g} m and {step_deg:g} degrees per frame",
            f"at most {max_poses} frames per generation: fewer actions or larger steps",
        )
    poses, pose = [], np.asarray(start, dtype=np.float64)
    for action, count in zip(actions, counts, strict=True):
        walked = _walk(pose, action, count)
        poses.append(walked)
        pose = walked[-1]
        _check_distance(pose[:3, 3], "actions")
    return np.concatenate(poses) if poses else np.zeros((0, 4, 4))


def flat(pose: Array) -> list[float]:
    """(4, 4) -> 16 numbers, row-major: the form of messages."""
    return pose.reshape(16).tolist()


def unflat(values: Sequence[float]) -> Array:
    """16 numbers, row-major -> (4, 4)."""
    return np.asarray(values, dtype=np.float64).reshape(4, 4)


def flat_of(pose: ArrayLike) -> list[float]:
    """Anything like (4, 4) -> 16 numbers; for clients. Raises ValueError for what is no matrix or
    has numbers that JSON has not.
    """
    matrix = np.asarray(pose, dtype=np.float64)
    if matrix.size != 16:
        raise ValueError(f"pose: a 4 x 4 matrix, world_from_camera; got shape {matrix.shape}")
    if not np.isfinite(matrix).all():
        raise ValueError(f"pose: finite numbers; got {matrix.tolist()}")
    return flat(matrix)


def check_length(num_poses: int, max_poses: int) -> None:
    """Refuse a path that is too long for one generation."""
    if num_poses > max_poses:
        allowed = f"1 to {max_poses} per generation"
        raise _invalid("poses", f"{num_poses} poses", allowed, "path_poses")


def _walk(start: Array, action: Action, count: int) -> Array:
    """(count, 4, 4): turns are split evenly; a frame walks along the heading of its middle."""
    poses = np.empty((count, 4, 4))
    pose = start
    for index in range(count):
        half_turned = _turned(pose, 0.5 * action.yaw_deg / count, 0.0)
        turned = _turned(pose, action.yaw_deg / count, action.pitch_deg / count)
        turned[:3, 3] += _ground_axes(half_turned) @ (
            np.array([action.right_m, -action.up_m, action.forward_m]) / count
        )
        poses[index] = pose = turned
    return poses


def _turned(pose: Array, yaw_deg: float, pitch_deg: float) -> Array:
    """Yaw about the world's vertical, pitch about the camera's own right axis."""
    turned = pose.copy()
    turned[:3, :3] = _about_y(yaw_deg) @ pose[:3, :3] @ _about_x(pitch_deg)
    return turned


def _ground_axes(pose: Array) -> Array:
    """(3, 3) with columns right, down, forward of a walker who looks along `pose`.

    Built from the camera's right axis, which stays level however far it looks up or down; a camera
    rolled on its side has no level right axis and walks along its own axes.
    """
    right = pose[:3, 0] * (1.0, 0.0, 1.0)
    length = float(np.linalg.norm(right))
    if length < 0.1:
        return pose[:3, :3]
    right = right / length
    down = np.array([0.0, 1.0, 0.0])
    return np.stack([right, down, np.cross(right, down)], axis=1)


def _about_y(angle_deg: float) -> Array:
    c, s = math.cos(math.radians(angle_deg)), math.sin(math.radians(angle_deg))
    return np.array([[c, 0.0, s], [0.0, 1.0, 0.0], [-s, 0.0, c]])


def _about_x(angle_deg: float) -> Array:
    c, s = math.cos(math.radians(angle_deg)), math.sin(math.radians(angle_deg))
    return np.array([[1.0, 0.0, 0.0], [0.0, c, -s], [0.0, s, c]])


def _rotation(q: Array) -> Array:
    """(3, 3) from a unit quaternion x, y, z, w."""
    x, y, z, w = q
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def is_exact(values: Sequence[float]) -> bool:
    """Whether 16 numbers are a rigid transform to the last digits, nearby: nothing to repair.

    In plain Python, since 10 live poses a second and session pass here. A NaN is never exact.
    """
    a, b, c, x, d, e, f, y, g, h, i, z, p, q, r, s = values
    lengths = abs(a * a + d * d + g * g - 1) + abs(b * b + e * e + h * h - 1)
    angle = abs(a * b + d * e + g * h)
    # of a right-handed frame, the third axis is the product of the others
    third = abs(d * h - e * g - c) + abs(g * b - a * h - f) + abs(a * e - b * d - i)
    most = MAX_DISTANCE_M
    is_near = -most <= x <= most and -most <= y <= most and -most <= z <= most
    return is_near and p == q == r == 0 and s == 1 and lengths + angle + third < EXACT


def _nearest_rotation(rotation: Array, field: str) -> Array:
    """The closest rotation to an almost-rotation; further off than the tolerance is refused with
    the figures.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        error = float(np.abs(rotation.T @ rotation - np.eye(3)).max())
        determinant = float(np.linalg.det(rotation))
    if not (
        error <= RIGID_TOLERANCE and determinant > 0
    ):  # so that a NaN from an overflow is refused
        raise _invalid(
            field,
            f"max |R^T R - I| = {error:.3g}, det R = {determinant:.3g}",
            f"a rotation: max |R^T R - I| <= {RIGID_TOLERANCE:g}, det R = 1 "
            "(no scale or shear; for a mirrored frame say which `axes` you use)",
        )
    u, _, v = np.linalg.svd(rotation)
    return np.asarray(u @ v, dtype=np.float64)


def _converted(rotation: Array, position: Array, axes: str, field: str) -> Array:
    if axes not in _OPENCV_FROM:
        raise _invalid("axes", repr(axes), " | ".join(AXES))
    _check_distance(position, field)
    basis = _OPENCV_FROM[axes]
    pose = np.eye(4)
    pose[:3, :3] = basis @ rotation @ basis.T
    pose[:3, 3] = basis @ position
    return pose


def _check_distance(position: Array, field: str) -> None:
    if np.abs(position).max() > MAX_DISTANCE_M:
        raise _invalid(
            field,
            f"position {position.tolist()}",
            f"metres, at most {MAX_DISTANCE_M:g} from the origin",
        )


def _invalid(field: str, seen: str, allowed: str, limit: str = "") -> InvalidRequest:
    return InvalidRequest(
        f"The camera pose or path can't be used: {field} is {seen}.",
        fields=(FieldProblem(field, seen, allowed),),
        limit=limit,
    )
