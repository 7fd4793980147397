"""PLY and GLB, read back by their specifications."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest

from service.points.cloud import Cloud
from service.points.files import AXES_TOLD, glb, linear, ply
from service.poses import AXES, pose_from_matrix, positions_in

RANDOM = np.random.default_rng(0)
CLOUD = Cloud(
    RANDOM.normal(size=(7, 3)).astype(np.float32),
    RANDOM.integers(0, 256, (7, 3), dtype=np.uint8),
    20,
)
EMPTY = Cloud(CLOUD.positions[:0], CLOUD.colours[:0], 0)


@pytest.mark.parametrize("axes", AXES)
def test_positions_are_those_that_poses_have_in_the_same_axes(axes: str) -> None:
    """A camera that is sent back at a point of the cloud stands there."""
    for there, here in zip(positions_in(axes, CLOUD.positions), CLOUD.positions, strict=True):
        pose = np.eye(4)
        pose[:3, 3] = there
        moved = pose_from_matrix(pose.flatten().tolist(), axes, "pose")
        np.testing.assert_allclose(moved[:3, 3], here)


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("cloud", [CLOUD, EMPTY])
def test_a_ply_file(cloud: Cloud, axes: str) -> None:
    head, _, body = ply(cloud, axes, "a title").partition(b"end_header\n")
    count = len(cloud.positions)
    assert head.decode().splitlines() == [
        "ply",
        "format binary_little_endian 1.0",
        "comment a title",
        f"comment {count} of {cloud.num_remembered} points",
        f"comment metres, {axes} axes: {AXES_TOLD[axes]}",
        f"element vertex {count}",
        "property float x",
        "property float y",
        "property float z",
        "property uchar red",
        "property uchar green",
        "property uchar blue",
    ]
    rows = np.array(list(struct.iter_unpack("<3f3B", body))).reshape(-1, 6)
    np.testing.assert_array_equal(rows[:, :3], positions_in(axes, cloud.positions))
    np.testing.assert_array_equal(rows[:, 3:], cloud.colours)


def test_a_glb_file() -> None:
    data = glb(CLOUD, "a title")
    magic, version, size, length, kind = struct.unpack_from("<4sII I4s", data)
    assert (magic, version, size, kind) == (b"glTF", 2, len(data), b"JSON") and length % 4 == 0
    document = json.loads(data[20 : 20 + length])
    body_length, body_kind = struct.unpack_from("<I4s", data, 20 + length)
    body = data[28 + length :]
    assert (body_kind, body_length) == (b"BIN\0", len(body)) and len(body) % 4 == 0
    assert document["asset"]["extras"] == {"num_points": 7, "num_remembered": 20}
    (primitive,) = document["meshes"][document["nodes"][0]["mesh"]]["primitives"]
    assert primitive["mode"] == 0  # points

    def values(name: str, dtype: str) -> np.ndarray:
        accessor = document["accessors"][primitive["attributes"][name]]
        view = document["bufferViews"][accessor["bufferView"]]
        part = body[view["byteOffset"] :][: view["byteLength"]]
        assert view["byteOffset"] % 4 == 0 and accessor["count"] == 7
        return np.frombuffer(part, dtype).reshape(7, -1)

    positions, place = values("POSITION", "<f4"), document["accessors"][0]
    np.testing.assert_array_equal(positions, CLOUD.positions * (1, -1, -1))
    assert place["min"] == positions.min(0).tolist() and place["max"] == positions.max(0).tolist()
    shown = values("COLOR_0", "<f4")  # to which an engine applies sRGB's curve
    srgb = np.where(shown <= 0.0031308, 12.92 * shown, 1.055 * shown ** (1 / 2.4) - 0.055)
    np.testing.assert_array_equal((255 * srgb).round(), CLOUD.colours)


def test_every_level_is_told_apart_in_linear_light() -> None:
    levels = linear(np.arange(256, dtype=np.uint8)[:, None].repeat(3, 1))[:, 0]
    assert (levels[0], levels[255]) == (0, 1) and (np.diff(levels) > 0).all()
    assert levels[128] == pytest.approx(0.21586, abs=1e-5)  # as tables have it


def test_a_glb_file_of_nothing_has_a_scene_and_no_mesh() -> None:
    data = glb(EMPTY, "nothing")
    document = json.loads(data[20:])
    assert struct.unpack_from("<4sII", data) == (b"glTF", 2, len(data))
    assert document["scenes"] == [{"name": "nothing"}] and "meshes" not in document
