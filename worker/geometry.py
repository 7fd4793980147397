"""Pinhole cameras and the conversion between pixels, cells and points in the world.

Axes are OpenCV's (x right, y down, z forward), transforms are `world_from_camera`, lengths metres, depth is z-depth.
Pixel (i, j) covers [j, j + 1) x [i, i + 1): intrinsics are corner-origin and a centre lies at +0.5, so that resizing a
camera is a plain scale of (fx, cx) and (fy, cy). Poses stay float64: a world 10 km from the origin is as sharp as one at 0.

Axis legend: ... any leading shape (cameras), h w a pixel or cell grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Cameras:
    """Any number of pinhole cameras that share one image size."""

    intrinsics: Tensor  # (..., 4) float64: fx, fy, cx, cy in pixels of height x width
    world_from_camera: Tensor  # (..., 4, 4) float64, rigid
    height: int
    width: int

    @property
    def shape(self) -> torch.Size:
        return self.intrinsics.shape[:-1]

    def __len__(self) -> int:
        return len(self.intrinsics)

    def __getitem__(self, item: int | slice | Tensor | Sequence[int]) -> Cameras:
        return Cameras(
            self.intrinsics[item], self.world_from_camera[item], self.height, self.width
        )

    def reshape(self, *shape: int) -> Cameras:
        """The same cameras with another leading shape."""
        return Cameras(
            self.intrinsics.reshape(*shape, 4),
            self.world_from_camera.reshape(*shape, 4, 4),
            self.height,
            self.width,
        )

    def resized(self, height: int, width: int) -> Cameras:
        """The same views sampled by height x width pixels (or latent cells)."""
        scale = torch.tensor(
            [width / self.width, height / self.height] * 2, dtype=self.intrinsics.dtype
        )
        scaled = self.intrinsics * scale.to(self.intrinsics.device)
        return Cameras(scaled, self.world_from_camera, height, width)

    def to(self, device: torch.device | str) -> Cameras:
        return Cameras(
            self.intrinsics.to(device), self.world_from_camera.to(device), self.height, self.width
        )

    @property
    def camera_from_world(self) -> Tensor:
        """(..., 4, 4) float64: the rigid inverse, exact up to rounding."""
        rotation = self.world_from_camera[..., :3, :3].transpose(-1, -2)
        inverse = torch.zeros_like(self.world_from_camera)
        inverse[..., :3, :3] = rotation
        inverse[..., :3, 3:] = -rotation @ self.world_from_camera[..., :3, 3:]
        inverse[..., 3, 3] = 1.0
        return inverse

    def rays(self) -> Tensor:
        """(..., h, w, 3) float64 camera-frame directions with z = 1 through every pixel's centre."""
        fx, fy, cx, cy = (value[..., None, None] for value in self.intrinsics.unbind(-1))
        device, dtype = self.intrinsics.device, self.intrinsics.dtype
        v = torch.arange(self.height, device=device, dtype=dtype)[:, None] + 0.5
        u = torch.arange(self.width, device=device, dtype=dtype)[None, :] + 0.5
        x, y = torch.broadcast_tensors((u - cx) / fx, (v - cy) / fy)
        return torch.stack([x, y, torch.ones_like(x)], dim=-1)


def cat_cameras(parts: Sequence[Cameras]) -> Cameras:
    """Concatenate along the first axis; all parts must share one image size."""
    sizes = {(part.height, part.width) for part in parts}
    if len(sizes) != 1:
        raise ValueError(f"cameras of different image sizes can't be joined: {sorted(sizes)}")
    height, width = sizes.pop()
    return Cameras(
        torch.cat([part.intrinsics for part in parts]),
        torch.cat([part.world_from_camera for part in parts]),
        height,
        width,
    )


def intrinsics_from_fov(fov_x_rad: float, height: int, width: int) -> Tensor:
    """(4,) float64 fx, fy, cx, cy of a centred camera with square pixels and this horizontal field of view."""
    focal = 0.5 * width / torch.tan(torch.tensor(0.5 * fov_x_rad, dtype=torch.float64))
    return torch.stack([focal, focal, *torch.tensor([width / 2, height / 2], dtype=torch.float64)])


def look_at(eye: Tensor, target: Tensor) -> Tensor:
    """(..., 4, 4) float64 world_from_camera at `eye` (..., 3) facing `target` (..., 3).

    The world's up is -y, as OpenCV's y points down; `target` straight above or below `eye` is undefined.
    """
    eye, target = torch.broadcast_tensors(eye.double(), target.double())
    forward = torch.nn.functional.normalize(target - eye, dim=-1)
    down = torch.zeros_like(forward)
    down[..., 1] = 1.0
    right = torch.nn.functional.normalize(torch.linalg.cross(down, forward), dim=-1)
    pose = torch.zeros(*eye.shape[:-1], 4, 4, dtype=torch.float64, device=eye.device)
    pose[..., :3, 0] = right
    pose[..., :3, 1] = torch.linalg.cross(forward, right)
    pose[..., :3, 2] = forward
    pose[..., :3, 3] = eye
    pose[..., 3, 3] = 1.0
    return pose
