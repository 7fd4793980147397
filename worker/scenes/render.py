"""Colour, z-depth and surface ids of scenes: ray casting in plain torch, on a CPU or CUDA.

Visibility is found at `supersample` times the resolution. A pixel whose subsamples all hit one face
is shaded once (the texture filters itself); only the others, at edges, are shaded per subsample.
Depth and id belong to the nearest surface in the pixel; its subsamples' depths are averaged
inversely, which is exact on planes, and never across an edge.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from worker.geometry import Cameras
from worker.scenes.motion import moving
from worker.scenes.scene import NUM_ROOM_FACES, Scene
from worker.scenes.shade import CEILING, Hits, Shader, make_shader
from worker.scenes.trace import NEAR_M, Views, make_views, rectangles, trace, trace_all

LENS_SPREAD = 0.14  # share of a pixel's light that each neighbour gets; sigma 0.53 pixels
_CUDA_RAYS = 1 << 25  # rays per batch on a GPU: about 3 GB of temporaries


@dataclass(frozen=True)
class Frames:
    rgb: Tensor  # (s, t, 3, h, w) float32 in [-1, 1]
    depth: Tensor  # (s, t, h, w) float32 z-depth in metres; 0 where the sky is seen or nothing
    instance: Tensor  # (s, t, h, w) int16 surface: 0 to 5 the room's faces, then 6 + primitive
    moving: Tensor  # (s, t, h, w) bool: a surface that moves


@torch.no_grad()
def render(
    scene: Scene, cameras: Cameras, supersample: int = 2, times: Tensor | None = None
) -> Frames:
    """Render cameras of leading shape (s, t), s = len(scene), on the scene's device, at `times`
    (t,) in frames (default 0, 1, 2, ...).
    """
    if len(cameras.shape) != 2 or cameras.shape[0] != len(scene):
        raise ValueError(
            f"cameras must have leading shape ({len(scene)} scenes, frames), "
            f"got {tuple(cameras.shape)}"
        )
    if supersample < 1:
        raise ValueError(f"supersample must be 1 or more, got {supersample}")
    s, t = cameras.shape
    h, w = cameras.height, cameras.width
    device = scene.centre.device
    times = torch.arange(t, device=device) if times is None else times.to(device)
    if times.shape != (t,):
        raise ValueError(f"times must have shape ({t},), one per frame, got {tuple(times.shape)}")
    fine = cameras.to(device).resized(h * supersample, w * supersample)
    views, shader = make_views(scene, fine, times), make_shader(scene, times)
    rgb, depth, instance = (
        torch.cat(parts) for parts in zip(*_batches(views, shader, supersample), strict=True)
    )
    rgb = through_lens(rgb * 2 - 1).view(s, t, 3, h, w)
    depth, instance = depth.view(s, t, h, w), instance.view(s, t, h, w)
    return Frames(rgb, _without_sky(scene, depth, instance), instance, _moving(scene, instance))


def _without_sky(scene: Scene, depth: Tensor, instance: Tensor) -> Tensor:
    is_open = (scene.sky[:, 1] > 0).any(-1)[:, None, None, None]
    return torch.where(is_open & (instance == CEILING), 0.0, depth)


def _moving(scene: Scene, instance: Tensor) -> Tensor:
    flags = torch.nn.functional.pad(moving(scene), (NUM_ROOM_FACES, 0))  # s f
    return flags.gather(1, instance.long().flatten(1)).view(instance.shape)


def through_lens(rgb: Tensor) -> Tensor:
    """(n, 3, h, w) with the point spread of a lens and its sensor: what a box filter leaves sharper
    than any camera would.
    """
    kernel = rgb.new_tensor([LENS_SPREAD, 1 - 2 * LENS_SPREAD, LENS_SPREAD])
    channels = rgb.shape[1]
    padded = F.pad(rgb, (1, 1, 1, 1), mode="replicate")
    rows = F.conv2d(padded, kernel.view(1, 1, 3, 1).expand(channels, 1, 3, 1), groups=channels)
    return F.conv2d(rows, kernel.view(1, 1, 1, 3).expand(channels, 1, 1, 3), groups=channels)


def _batches(views: Views, shader: Shader, supersample: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Frames one by one on a CPU (their temporaries stay in cache), many at once on CUDA."""
    num, device = len(views.x), views.x.device
    if device.type == "cpu":
        rects, parts = rectangles(views), []
        for n in range(num):
            depth, key = trace(views, n, rects)
            one = slice(n, n + 1)
            parts.append(resolve(views[one], shader, depth[None], key[None], supersample))
        return parts
    step = max(1, _CUDA_RAYS // (views.x.shape[1] * views.y.shape[1]))
    chunks = [slice(start, start + step) for start in range(0, num, step)]
    return [resolve(views[c], shader, *trace_all(views[c]), supersample) for c in chunks]


def resolve(
    views: Views, shader: Shader, depth: Tensor, key: Tensor, k: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Fine depth and key (n, h * k, w * k) -> rgb (n, 3, h, w) in [0, 1], depth, instance."""
    n, fine_h, fine_w = depth.shape
    h, w = fine_h // k, fine_w // k
    depths = _subsamples(depth, k)  # k * k of (n, h, w)
    keys = _subsamples(key, k)
    nearest, nearest_key = depths[0], keys[0]
    mixed = torch.zeros_like(nearest, dtype=torch.bool)
    for other, other_key in zip(depths[1:], keys[1:], strict=True):
        mixed |= other_key != keys[0]
        closer = other < nearest
        nearest = torch.where(closer, other, nearest)
        nearest_key = torch.where(closer, other_key, nearest_key)
    instance = nearest_key >> 2
    total, count = torch.zeros_like(nearest), torch.zeros_like(nearest)
    for other, other_key in zip(depths, keys, strict=True):
        mine = (other_key >> 2) == instance
        total += torch.where(mine, 1.0 / other, 0.0)
        count += mine
    resolved = count / total
    rgb = _colours(views, shader, (resolved, nearest_key, mixed), (depth, key), k)
    resolved = torch.where(nearest > NEAR_M, resolved, 0.0)
    return rgb.view(3, n, h, w).transpose(0, 1), resolved, instance.to(torch.int16)


def _subsamples(image: Tensor, k: int) -> list[Tensor]:
    return [image[:, i::k, j::k] for i in range(k) for j in range(k)]


def _colours(
    views: Views,
    shader: Shader,
    pixels: tuple[Tensor, Tensor, Tensor],
    fine: tuple[Tensor, Tensor],
    k: int,
) -> Tensor:
    """(3, n * h * w): whole pixels shaded at their centre, mixed ones per subsample."""
    depth, key, mixed = pixels
    n, h, w = depth.shape
    x, y = views.x.view(n, w, k).mean(-1), views.y.view(n, h, k).mean(-1)
    edge = mixed.nonzero(as_tuple=True)
    f, i, j = (index[:, None] for index in edge)
    sub = torch.arange(k * k, device=depth.device)
    fine_i, fine_j = i * k + sub // k, j * k + sub % k
    samples = [
        (x[:, None, :].expand(n, h, w).flatten(), views.x[f, fine_j].flatten()),
        (y[:, :, None].expand(n, h, w).flatten(), views.y[f, fine_i].flatten()),
        (depth.flatten(), fine[0][f, fine_i, fine_j].flatten()),
        (key.flatten(), fine[1][f, fine_i, fine_j].flatten()),
        (
            torch.arange(n, device=depth.device).repeat_interleave(h * w),
            f.expand_as(fine_i).flatten(),
        ),
    ]
    whole = (~mixed).flatten().nonzero()[:, 0]
    px, py, pz, pkey, frame = (torch.cat([a[whole], b]) for a, b in samples)
    shaded = shader.shade(_hits(views, px, py, pz, pkey, frame, k))
    rgb = torch.empty(3, n * h * w, device=depth.device)
    rgb[:, whole] = shaded[:, : len(whole)]
    rgb[:, (edge[0] * h + edge[1]) * w + edge[2]] = (
        shaded[:, len(whole) :].view(3, -1, k * k).mean(-1)
    )
    return rgb


def _hits(
    views: Views,
    x: Tensor,
    y: Tensor,
    z: Tensor,
    key: Tensor,
    frame: Tensor,
    k: int,
) -> Hits:
    many = len(views.scene) > 1
    m = views.room_matrix[frame].unbind(1) if many else views.room_matrix[0]
    eye = views.eye[frame] if many else views.eye
    direction = [row[..., 0] * x + row[..., 1] * y + row[..., 2] for row in m]
    position = [eye[:, a] + z * direction[a] for a in range(3)]
    pixel = (views.x[:, 1] - views.x[:, 0]) * k
    footprint = z * (pixel[frame] if many else pixel)
    return Hits(
        key,
        views.scene[frame],
        views.moment[frame],
        (position[0], position[1], position[2]),
        (direction[0], direction[1], direction[2]),
        footprint,
    )
