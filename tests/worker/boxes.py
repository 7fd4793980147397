"""Analytic truth for memory tests: cameras in a room with boxes in it, cast in float64."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from worker.geometry import Cameras, cat_cameras, intrinsics_from_fov, look_at

ROOM = (2.5, 1.5, 2.5)  # half extents in metres: 5 m deep


def camera(
    eye: Sequence[float],
    target: Sequence[float],
    height: int = 128,
    width: int = 192,
    fov_deg: float = 80.0,
) -> Cameras:
    """(1,) cameras at `eye` that look at `target`."""
    pose = look_at(torch.tensor(eye, dtype=torch.float64), torch.tensor(target))
    intrinsics = intrinsics_from_fov(math.radians(fov_deg), height, width)
    return Cameras(intrinsics[None], pose[None], height, width)


def recentred(views: Cameras, origin: Tensor) -> Cameras:
    """The same views of a world whose new origin is `origin` (3,) float64."""
    pose = views.world_from_camera.clone()
    pose[..., :3, 3] -= origin
    return Cameras(views.intrinsics, pose, views.height, views.width)


def orbit(num: int, height: int = 128, width: int = 192) -> Cameras:
    """(num,) cameras on a circle of 1 m around the room's middle, looking outwards."""
    angles = [2 * math.pi * i / num for i in range(num)]
    views = [
        camera(
            (math.sin(a), 0.0, math.cos(a)), (3 * math.sin(a), 0.3, 3 * math.cos(a)), height, width
        )
        for a in angles
    ]
    return cat_cameras(views)


def room_depth(
    cameras: Cameras,
    boxes: Sequence[tuple[Sequence[float], Sequence[float]]] = (),  # centre, half extents
    half: Sequence[float] = ROOM,
) -> Tensor:
    """(T, H, W) float64 z-depth at every pixel's centre, seen from inside the room."""
    eye, direction = _rays(cameras)
    walls = torch.tensor(half, dtype=torch.float64)
    depth = ((direction.sign() * walls - eye) / direction).nan_to_num(nan=torch.inf).amin(-1)
    for centre, extent in boxes:
        low = torch.tensor(centre, dtype=torch.float64) - torch.tensor(extent)
        high = torch.tensor(centre, dtype=torch.float64) + torch.tensor(extent)
        a, b = (low - eye) / direction, (high - eye) / direction
        enter, leave = torch.minimum(a, b).amax(-1), torch.maximum(a, b).amin(-1)
        depth = torch.where((enter < leave) & (enter > 0), torch.minimum(depth, enter), depth)
    return depth


def surface(cameras: Cameras, depth: Tensor) -> Tensor:
    """(T, H, W, 3) float64 world positions of the pixels' centres at this depth."""
    eye, direction = _rays(cameras)
    return eye + direction * depth[..., None]


def sees(viewer: Cameras, points: Tensor) -> Tensor:
    """Bool like points[..., 0]: in the image of the viewer (1,), occlusion aside."""
    inverse = viewer.camera_from_world[0]
    local = points @ inverse[:3, :3].T + inverse[:3, 3]
    fx, fy, cx, cy = viewer.intrinsics[0]
    u = local[..., 0] * fx / local[..., 2] + cx
    v = local[..., 1] * fy / local[..., 2] + cy
    inside = (u > 0) & (u < viewer.width) & (v > 0) & (v < viewer.height)
    return inside & (local[..., 2] > 0)


def _rays(cameras: Cameras) -> tuple[Tensor, Tensor]:
    pose = cameras.world_from_camera
    direction = torch.einsum("tij,thwj->thwi", pose[:, :3, :3], cameras.rays())
    return pose[:, None, None, :3, 3], direction
