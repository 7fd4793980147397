"""The nearest surface along every ray: z-depth and a key (surface id * 4 + axis of the face).

A ray is p = origin + t * direction with the camera-frame z of direction = 1, so t *is* the z-depth.
In a primitive's own frame a direction is an affine function of the pixel's x and y, so it costs two
additions per axis. `trace` walks the primitives of one camera and touches only each one's rectangle
on the screen: few operations, right for a CPU. `trace_all` handles many cameras at once, whole
images per primitive: few launches, right for CUDA and for tiny images. They agree.

Axis legend: s scenes, t cameras of a scene, n = s * t, p primitives, h w pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from worker.geometry import Cameras
from worker.scenes.motion import moving, placed
from worker.scenes.scene import BOX, CYLINDER, NOTHING, NUM_ROOM_FACES, SPHERE, Scene

NEAR_M = 0.05
CURVED = 3  # the axis of a hit on a round side
_CORNERS = torch.tensor([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]).float()
_EDGES = [(a, b) for a in range(8) for b in range(a) if (a ^ b) in (1, 2, 4)]


@dataclass(frozen=True)
class Views:
    """What tracing needs of n cameras and their scenes, float32, relative to each primitive."""

    x: Tensor  # (n, w) x of the pixel centres on the plane z = 1
    y: Tensor  # (n, h)
    matrix: Tensor  # (n, p, 3, 3) local_from_camera
    origin: Tensor  # (n, p, 3) camera centre in the primitive's frame
    half: Tensor  # (n, p, 3)
    kind: Tensor  # (n, p)
    room_matrix: Tensor  # (n, 3, 3) world_from_camera
    room_origin: Tensor  # (n, 3) camera centre from the room's centre
    room_half: Tensor  # (n, 3)
    eye: Tensor  # (n, 3) camera centre in the world
    scene: Tensor  # (n,) int64
    moment: Tensor  # (n,) int64 row of primitives' places: the scene, or the frame if things move

    def __getitem__(self, item: slice) -> Views:
        return Views(*(getattr(self, field.name)[item] for field in fields(self)))


def make_views(scene: Scene, cameras: Cameras, times: Tensor | None = None) -> Views:
    """Cameras (s, t) -> views with n = s * t; float64 until positions are local. `times` (t,) in
    frames place what moves; without them it is at rest.
    """
    s, t = cameras.shape
    fx, fy, cx, cy = cameras.intrinsics.reshape(s * t, 4, 1).unbind(1)
    device = cameras.intrinsics.device
    u = torch.arange(cameras.width, device=device) + 0.5
    v = torch.arange(cameras.height, device=device) + 0.5
    pose = cameras.world_from_camera
    eye, turn = pose[..., :3, 3], pose[..., :3, :3]
    centre, rotation = places(scene, times)  # s 1 p, or s t p if things move
    local = local_from_world(rotation.double())
    offset = eye[:, :, None] - centre.double()  # s t p 3
    middle = 0.5 * (scene.room_low + scene.room_high).double()
    half = 0.5 * (scene.room_high - scene.room_low)

    def each(value: Tensor) -> Tensor:
        return value[:, None].expand(s, t, *value.shape[1:]).flatten(0, 1)

    scene_of = torch.arange(s * t, device=device) // t
    return Views(
        x=((u - cx) / fx).float(),
        y=((v - cy) / fy).float(),
        matrix=(local @ turn[:, :, None]).float().flatten(0, 1),
        origin=(local @ offset[..., None])[..., 0].float().flatten(0, 1),
        half=each(scene.half),
        kind=each(scene.kind),
        room_matrix=turn.float().flatten(0, 1),
        room_origin=(eye - middle[:, None]).float().flatten(0, 1),
        room_half=each(half),
        eye=eye.float().flatten(0, 1),
        scene=scene_of,
        moment=scene_of if centre.shape[1] == 1 else torch.arange(s * t, device=device),
    )


def places(scene: Scene, times: Tensor | None) -> tuple[Tensor, Tensor]:
    """Centres (s, k, p, 3) and rotations (s, k, p): k = 1 if nothing moves, else one per time."""
    if times is None or not moving(scene).any():
        return scene.centre[:, None], scene.rotation[:, None]
    return placed(scene, times)


def local_from_world(rotation: Tensor) -> Tensor:
    """(..., 3, 3) for angles (...) about the vertical."""
    cos, sin, zero = rotation.cos(), rotation.sin(), torch.zeros_like(rotation)
    rows = [cos, zero, -sin, zero, zero + 1, zero, sin, zero, cos]
    return torch.stack(rows, -1).reshape(*rotation.shape, 3, 3)


def rectangles(views: Views) -> Tensor:
    """(n, p, 4) int64 left, top, right, bottom of the pixels a primitive may touch, maybe empty."""
    corners = views.half[:, :, None] * _CORNERS.to(views.half.device) - views.origin[:, :, None]
    points = (
        corners @ views.matrix
    )  # rows times local_from_camera = camera_from_local times columns
    a, b = (points[:, :, list(ends)] for ends in zip(*_EDGES, strict=True))
    share = (NEAR_M - a[..., 2]) / (b[..., 2] - a[..., 2])
    crossing = a + share[..., None] * (b - a)
    crossing[..., 2] = torch.where((share > 0) & (share < 1), NEAR_M, -1.0)
    points = torch.cat([points, crossing], 2)
    z = points[..., 2]
    seen = z >= NEAR_M
    sides = []
    for axis, grid in ((0, views.x), (1, views.y)):
        step = (grid[:, 1] - grid[:, 0])[:, None, None]
        pixel = (points[..., axis] / z - grid[:, :1, None]) / step  # 0 = centre of the first pixel
        low = torch.where(seen, pixel, torch.inf).amin(-1).clamp(0, grid.shape[1])
        high = torch.where(seen, pixel, -torch.inf).amax(-1).clamp(-1, grid.shape[1] - 1)
        sides.append((low.ceil(), high.floor() + 1))
    (left, right), (top, bottom) = sides
    right = torch.where(views.kind == NOTHING, -1.0, right)
    return torch.stack([left, top, right, bottom], -1).long()


Number = Tensor | float


def hit_box(
    d: list[Tensor], o: list[Number] | Tensor, half: list[Number] | Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Entry, exit and axis of the entry face along directions d from origin o (both local)."""
    nears, fars = [], []
    for axis in range(3):
        inverse = 1.0 / d[axis]
        to_middle, reach = inverse * o[axis], inverse.abs() * half[axis]
        nears.append(-reach - to_middle)
        fars.append(reach - to_middle)
    near_xy = torch.maximum(nears[0], nears[1])
    axis_hit = torch.where(nears[2] > near_xy, 2, torch.where(nears[1] > nears[0], 1, 0))
    far = torch.minimum(torch.minimum(fars[0], fars[1]), fars[2])
    return torch.maximum(near_xy, nears[2]), far, axis_hit


def hit_sphere(
    d: list[Tensor], o: list[Number] | Tensor, half: list[Number] | Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    a = d[0] * d[0] + d[1] * d[1] + d[2] * d[2]
    b = d[0] * o[0] + d[1] * o[1] + d[2] * o[2]
    c = o[0] * o[0] + o[1] * o[1] + o[2] * o[2] - half[0] * half[0]
    root = (b * b - a * c).sqrt()  # nan where missed: every comparison with it fails
    return (-b - root) / a, (root - b) / a, torch.full_like(a, CURVED, dtype=torch.int64)


def hit_cylinder(
    d: list[Tensor], o: list[Number] | Tensor, half: list[Number] | Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    a = d[0] * d[0] + d[2] * d[2]
    b = d[0] * o[0] + d[2] * o[2]
    c = o[0] * o[0] + o[2] * o[2] - half[0] * half[0]
    root = (b * b - a * c).sqrt()
    side, side_far = (-b - root) / a, (root - b) / a
    inverse = 1.0 / d[1]
    to_middle, reach = inverse * o[1], inverse.abs() * half[1]
    cap, cap_far = -reach - to_middle, reach - to_middle
    axis_hit = torch.where(cap > side, 1, CURVED)
    return torch.maximum(side, cap), torch.minimum(side_far, cap_far), axis_hit


HITS = {BOX: hit_box, SPHERE: hit_sphere, CYLINDER: hit_cylinder}


def hit_room(
    d: list[Tensor], o: list[Number] | Tensor, half: list[Number] | Tensor
) -> tuple[Tensor, Tensor]:
    """Depth and key of the room's inner faces; 0 depth where the camera is outside and misses."""
    # A component that is exactly 0 gives infinity here, never 0 / 0: the ray meets the other faces.
    fars = [torch.copysign(torch.as_tensor(half[k]), d[k]).sub_(o[k]).div_(d[k]) for k in range(3)]
    far_xy = torch.minimum(fars[0], fars[1])
    depth = torch.minimum(far_xy, fars[2])
    axis = torch.where(fars[2] < far_xy, 2, torch.where(fars[1] < fars[0], 1, 0))
    high = torch.where(axis == 2, d[2], torch.where(axis == 1, d[1], d[0])) > 0
    return depth.clamp_(min=0.0), (axis * 2 + high) * 4 + axis


def directions(x: Tensor, y: Tensor, m: list[list[float]]) -> list[Tensor]:
    """Local directions of a grid of pixels, x (w,) and y (h, 1): three (h, w)."""
    return [(row[0] * x + row[2]) + row[1] * y for row in m]


def trace(views: Views, n: int, rects: Tensor) -> tuple[Tensor, Tensor]:
    """Camera n: depth (h, w) float32 and key (h, w) int64; `rects` from `rectangles`."""
    x, y = views.x[n], views.y[n][:, None]
    d = directions(x, y, views.room_matrix[n].tolist())
    depth, key = hit_room(d, views.room_origin[n].tolist(), views.room_half[n].tolist())
    kinds, boxes = views.kind[n].tolist(), rects[n].tolist()
    matrices, origins, halves = (
        value[n].tolist() for value in (views.matrix, views.origin, views.half)
    )
    for p, (left, top, right, bottom) in enumerate(boxes):
        if right <= left or bottom <= top:
            continue
        d = directions(x[left:right], y[top:bottom], matrices[p])
        near, far, axis = HITS[kinds[p]](d, origins[p], halves[p])
        best, best_key = depth[top:bottom, left:right], key[top:bottom, left:right]
        hit = (near < far) & (near > NEAR_M) & (near < best)
        torch.where(hit, near, best, out=best)
        torch.where(hit, axis + 4 * (NUM_ROOM_FACES + p), best_key, out=best_key)
    return depth, key


def trace_all(views: Views) -> tuple[Tensor, Tensor]:
    """All n cameras at once: depth (n, h, w) float32, key (n, h, w) int64."""
    x, y = views.x[:, None, :], views.y[:, :, None]

    def grids(matrix: Tensor) -> list[Tensor]:  # (n, 3, 3)
        m = matrix[..., None, None]
        return [(m[:, k, 0] * x + m[:, k, 2]) + m[:, k, 1] * y for k in range(3)]

    def scalars(value: Tensor) -> Tensor:  # (n, 3) -> (3, n, 1, 1)
        return value.T[..., None, None]

    depth, key = hit_room(
        grids(views.room_matrix), scalars(views.room_origin), scalars(views.room_half)
    )
    present = [set(column) for column in views.kind.T.tolist()]
    for p, kinds in enumerate(present):
        d, o, half = (
            grids(views.matrix[:, p]),
            scalars(views.origin[:, p]),
            scalars(views.half[:, p]),
        )
        for kind in sorted(kinds - {NOTHING}):
            near, far, axis = HITS[kind](d, o, half)
            mine = (views.kind[:, p] == kind)[:, None, None]
            hit = mine & (near < far) & (near > NEAR_M) & (near < depth)
            depth = torch.where(hit, near, depth)
            key = torch.where(hit, axis + 4 * (NUM_ROOM_FACES + p), key)
    return depth, key
