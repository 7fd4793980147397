"""Pinhole cameras and the conversion between pixels, cells and points in the world.

Axes are OpenCV's (x right, y down, z forward), transforms are `world_from_camera`, lengths metres,
depth is z-depth. Pixel (i, j) covers [j, j + 1) x [i, i + 1): intrinsics are corner-origin and a
centre lies at +0.5, so that resizing a camera is a plain scale of (fx, cx) and (fy, cy). Poses stay
float64: a world 10 km from the origin is as sharp as one at 0.

Axis legend: ... any leading shape (cameras), h w a pixel or cell grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from worker.placed import CLOSER, FINER

Convention = Literal["centre", "reference"]

EDGE_RATIO = 1 / 16  # neighbouring depths that differ by more belong to two surfaces
MIN_SHARE = 0.25  # of a cell's pixels that a surface must fill to be written
MASKED_SHARE = 0.5  # of a cell's pixels that excludes it
NEAR_M = 0.05  # what is nearer to a camera is not looked up
MAX_SLANT = 4.0  # cells; a surface that recedes more is too grazing for its slant to be known


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

    def __getitem__(self, item: Any) -> Cameras:
        return Cameras(self.intrinsics[item], self.world_from_camera[item], self.height, self.width)

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

    def mirrored(self) -> Cameras:
        """Those whose pictures are these, left to right. The mirror is the plane x = 0 of the
        world, so that poses stay right-handed.
        """
        flip = torch.tensor([-1.0, 1, 1, 1], dtype=self.world_from_camera.dtype)
        flip = flip.to(self.world_from_camera.device)
        intrinsics = self.intrinsics.clone()
        intrinsics[..., 2] = self.width - intrinsics[..., 2]
        poses = flip[:, None] * self.world_from_camera * flip
        return Cameras(intrinsics, poses, self.height, self.width)

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
        """(..., h, w, 3) float64 camera-frame directions, z = 1, through every pixel's centre."""
        fx, fy, cx, cy = (value[..., None, None] for value in self.intrinsics.unbind(-1))
        device, dtype = self.intrinsics.device, self.intrinsics.dtype
        v = torch.arange(self.height, device=device, dtype=dtype)[:, None] + 0.5
        u = torch.arange(self.width, device=device, dtype=dtype)[None, :] + 0.5
        x, y = torch.broadcast_tensors((u - cx) / fx, (v - cy) / fy)
        return torch.stack([x, y, torch.ones_like(x)], dim=-1)


class Look:
    """Where other views see what lies at some depth behind the pixels of one."""

    def __init__(self, views: Cameras, one: int, others: list[int]) -> None:
        there = views[others]
        relative = (there.camera_from_world @ views.world_from_camera[one]).float()
        rays = views[one].rays().float()
        self.turned = torch.einsum("oij,hwj->ohwi", relative[:, :3, :3], rays)  # (o, H, W, 3)
        self.moved = relative[:, None, None, :3, 3]  # (o, 1, 1, 3)
        size = rays.new_tensor([views.width, views.height])
        self._half = size / 2
        lens = there.intrinsics.float()[:, None, None]
        self.focal, self.centre = 2 * lens[..., :2] / size, 2 * lens[..., 2:] / size - 1

    def at(self, depth: Tensor) -> tuple[Tensor, Tensor]:
        """Of depth (H, W): positions (o, H, W, 2), in [-1, 1] within the pictures, and z (o, H,
        W).
        """
        points = torch.addcmul(self.moved, self.turned, depth[..., None])
        z = points[..., 2]
        near = 1 / z.clamp(min=NEAR_M)
        return torch.addcmul(self.centre, points[..., :2] * near[..., None], self.focal), z

    def parallax_px(self, depth: Tensor) -> Tensor:
        """Of depth (H, W): how far each view sees it from its place at infinity, (o, H, W)."""
        (at, _), (far, _) = self.at(depth), self.at(1e4 * depth)
        u, v = ((at - far) * self._half).unbind(-1)  # a norm over so short an axis is slow
        return torch.hypot(u, v)


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


def stack_cameras(parts: Sequence[Cameras]) -> Cameras:
    """Cameras (t,) of each session -> (b, t); all share one image size and one t."""
    return Cameras(
        torch.stack([part.intrinsics for part in parts]),
        torch.stack([part.world_from_camera for part in parts]),
        parts[0].height,
        parts[0].width,
    )


def intrinsics_from_fov(fov_x_rad: float, height: int, width: int) -> Tensor:
    """(4,) float64 fx, fy, cx, cy: centred, square pixels, this horizontal field of view."""
    focal = 0.5 * width / torch.tan(torch.tensor(0.5 * fov_x_rad, dtype=torch.float64))
    return torch.stack([focal, focal, *torch.tensor([width / 2, height / 2], dtype=torch.float64)])


def look_at(eye: Tensor, target: Tensor) -> Tensor:
    """(..., 4, 4) float64 world_from_camera at `eye` (..., 3) facing `target` (..., 3).

    The world's up is -y, as OpenCV's y points down; `target` straight above or below `eye` is
    undefined.
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


@dataclass(frozen=True)
class Lifted:
    """Latent cells placed in the world, one point per cell."""

    positions: Tensor  # (T, h, w, 3) float32 metres, relative to the `origin` given to `lift`
    depth: Tensor  # (T, h, w) float32 z-depth of the ray through the cell's centre, 0 where invalid
    size: Tensor  # (T, h, w) float32 metres per cell at that depth, across the ray
    recession: Tensor  # (T, h, w) float32 metres of z-depth that the cell's surface spans
    valid: Tensor  # (T, h, w) bool


def lift(
    depth: Tensor,  # (T, H', W') z-depth, 0 or not finite = invalid
    cameras: Cameras,  # (T,)
    grid: tuple[int, int],  # h, w
    mask: Tensor | None = None,  # (T, H", W") bool of any size from the grid's up, True = exclude
    origin: Tensor | None = None,  # (3,) float64, the world's point that positions are relative to
    convention: Convention = "centre",
) -> Lifted:
    """Place every latent cell on the surface that its depth map shows.

    `reference` keeps the rules of the public code (corner rays, bilinear depth, nearest mask) that
    existing checkpoints were trained with; `centre` is exact on planes and never averages two
    surfaces.
    """
    _check_lift(depth, cameras, mask, grid)
    cells = cameras.resized(*grid)
    pool = pool_depth if convention == "centre" else _bilinear_depth
    z = pool(depth, grid, mask).double()
    valid = z > 0
    rays = cells.rays()
    if convention == "reference":
        rays[..., :2] -= (0.5 / cells.intrinsics[..., :2])[..., None, None, :]
    pose = cells.world_from_camera
    offset = pose[..., :3, 3] - (0.0 if origin is None else origin)
    positions = torch.einsum("tij,thwj->thwi", pose[..., :3, :3], rays * z[..., None])
    positions = positions + offset[..., None, None, :]
    size = z / cells.intrinsics[..., :2].mean(-1)[..., None, None]
    recedes = torch.minimum(_recession(z), MAX_SLANT * size)
    return Lifted(positions.float(), z.float(), size.float(), recedes.float(), valid)


def pool_depth(depth: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
    """(T, h, w) float32: the depth of each cell's central ray, 0 where no surface is sure.

    A cell that straddles an edge takes its nearest surface that fills MIN_SHARE of the cell.
    Inverse depth is linear on planes, so the harmonic mean over a surface's pixels is the depth at
    its middle.
    """
    pixels = _cell_pixels(depth.float(), grid)  # (T, h, w, k)
    seen = torch.isfinite(pixels) & (pixels > 0)
    if mask is not None:
        seen &= ~masked_cells(mask, grid)[..., None]
        if mask.shape == depth.shape:
            seen &= ~_cell_pixels(mask, grid)
    ordered = torch.where(seen, pixels, torch.inf).sort(dim=-1).values
    # A surface is a run of sorted depths without a jump; a slant has larger steps in a coarse map.
    jump = max(EDGE_RATIO, 0.5 * grid[0] / depth.shape[-2])
    steps = ordered[..., 1:] > ordered[..., :-1] * (1 + jump)
    surface = torch.nn.functional.pad(steps.long().cumsum(-1), (1, 0))
    found = ordered.isfinite()
    pixels_of = torch.zeros_like(ordered).scatter_add_(-1, surface, found.float())
    large = pixels_of >= MIN_SHARE * pixels.shape[-1]
    chosen = (surface == large.float().argmax(-1, keepdim=True)) & found
    inverse = torch.where(chosen, 1 / ordered, 0.0).sum(-1) / chosen.sum(-1).clamp(min=1)
    return torch.where(large.any(-1), 1 / inverse, 0.0)


def relief(depth: Tensor, cells: Tensor, mask: Tensor | None = None) -> Tensor:
    """(T, h, w, NUM_PARTS) float32: the depths of each cell's parts over that of its central ray,
    given the map (T, H', W') that both come from and what `lift` made of it; 1 where unknown.

    A map without that detail says how surfaces slant: the smaller of the two one-sided gradients of
    inverse depth, none where they differ in sign.
    """
    h, w = cells.shape[1:]
    if depth.shape[1] >= CLOSER * h and depth.shape[2] >= CLOSER * w:
        finer = (FINER * h, FINER * w)
        if mask is not None and mask.shape == depth.shape:
            depth = depth.masked_fill(mask, 0.0)
        parts = _cell_pixels(pool_depth(sharp_enlarged(depth, finer), finer, mask), (h, w))
        return torch.where((parts > 0) & (cells > 0)[..., None], parts / cells[..., None], 1.0)
    inverse = torch.where(cells > 0, 1 / cells, torch.nan)
    aside = (torch.arange(FINER, device=cells.device) + 0.5) / FINER - 0.5
    down, right = (_slope(inverse, axis)[..., None, None] for axis in (1, 2))
    change = (down * aside[:, None] + right * aside) * cells[..., None, None]
    return 1 / (1 + change.nan_to_num()).clamp(min=0.25).flatten(-2)


def sharp_enlarged(depth: Tensor, size: tuple[int, int]) -> Tensor:
    """Depth maps (T, H', W') of at least this size: larger ones as they are.

    Inverse depth is interpolated, as it is linear on planes, but never across an edge.
    """
    nearest = enlarged(depth, size)
    if nearest is depth:
        return depth
    resize, inverse = torch.nn.functional.interpolate, torch.where(depth > 0, 1 / depth, torch.nan)
    size = (nearest.shape[1], nearest.shape[2])
    smooth = 1 / resize(inverse[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    same = (smooth / nearest - 1).abs() <= EDGE_RATIO  # false for NaN
    return torch.where(same, smooth, nearest)


def enlarged(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(T, H', W') of any type with each side at least as long as in `size`, by nearest values."""
    for axis, wanted in zip((1, 2), size, strict=True):
        length = maps.shape[axis]
        if length < wanted:
            centres = torch.arange(wanted, device=maps.device) + 0.5
            maps = maps.index_select(axis, (centres * length / wanted).long())
    return maps


def _slope(inverse: Tensor, axis: int) -> Tensor:
    """(T, h, w) change per cell of what may be NaN, 0 at edges and beside what is unknown."""
    n = inverse.shape[axis]
    edge = torch.full_like(inverse.narrow(axis, 0, 1), torch.nan)
    step = inverse.diff(dim=axis, prepend=edge, append=edge)
    before, after = step.narrow(axis, 0, n), step.narrow(axis, 1, n)
    smaller = torch.where(before.abs() < after.abs(), before, after)
    return torch.where(before * after > 0, smaller, 0.0)


def masked_cells(mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """(T, h, w) bool: cells of which a mask (T, H', W') of any size hides MASKED_SHARE or more."""
    return _cell_pixels(mask, grid).float().mean(-1) >= MASKED_SHARE


def _bilinear_depth(depth: Tensor, grid: tuple[int, int], mask: Tensor | None) -> Tensor:
    resize = torch.nn.functional.interpolate
    pooled = resize(depth[:, None].float(), size=grid, mode="bilinear", align_corners=False)[:, 0]
    if mask is not None:
        pooled = pooled.masked_fill(resize(mask[:, None].float(), size=grid)[:, 0] > 0, 0.0)
    return torch.where(torch.isfinite(pooled), pooled, 0.0).clamp(min=0)


def _cell_pixels(image: Tensor, grid: tuple[int, int]) -> Tensor:
    """(T, H', W') -> (T, h, w, k): each cell's pixels; other sizes are sampled, never blended."""
    for axis, cells in ((1, grid[0]), (2, grid[1])):
        length = image.shape[axis]
        if length % cells:
            samples = cells * -(-length // cells)
            centres = torch.arange(samples, device=image.device) + 0.5
            image = image.index_select(axis, (centres * length / samples).long())
    t, h, w = len(image), *grid
    blocks = image.reshape(t, h, image.shape[1] // h, w, image.shape[2] // w)
    return blocks.transpose(2, 3).reshape(t, h, w, -1)


def _recession(z: Tensor) -> Tensor:
    """(T, h, w) metres of depth that each cell's surface spans; inverse depth is linear on planes.

    The smaller of the two one-sided gradients is taken, so that an edge is not mistaken for a
    slant.
    """
    inverse = torch.where(z > 0, 1 / z, torch.nan)
    total = torch.zeros_like(z)
    for axis in (-1, -2):
        edge = torch.full_like(inverse.narrow(axis, 0, 1), torch.nan)
        step = inverse.diff(dim=axis, prepend=edge, append=edge).abs().nan_to_num(nan=torch.inf)
        n = z.shape[axis]
        gradient = torch.minimum(step.narrow(axis, 0, n), step.narrow(axis, 1, n))
        total = total + torch.where(gradient.isfinite(), gradient, 0.0) * z * z
    return total


def _check_lift(
    depth: Tensor, cameras: Cameras, mask: Tensor | None, grid: tuple[int, int]
) -> None:
    if depth.ndim != 3 or cameras.shape != depth.shape[:1]:
        raise ValueError(
            f"depth must be (T, H', W') with one camera per frame; "
            f"got depth {tuple(depth.shape)} and cameras {tuple(cameras.shape)}"
        )
    for name, image in (("depth", depth), ("mask", mask)):
        if image is None:
            continue
        if len(image) != len(depth) or image.shape[1] < grid[0] or image.shape[2] < grid[1]:
            raise ValueError(
                f"{name} {tuple(image.shape)} must have {len(depth)} frames "
                f"of at least one value per cell of the grid {grid}"
            )
