"""Camera paths through scenes: closed loops that return over the same poses, and smooth walks.

Every path is the best of many random candidates: first those that touch anything are dropped
(signed distances), then the rest are judged by what they see (tiny ray-cast views): rather an open,
varied view than a wall. When no candidate of full size fits a crowded scene, smaller ones are
tried; a turn on the spot fits always.

Axis legend: c candidates, m poses of the outward leg.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worker.geometry import Cameras, intrinsics_from_fov, look_at
from worker.scenes.clearance import clearance
from worker.scenes.motion import moving, swept
from worker.scenes.scene import NUM_ROOM_FACES, Scene
from worker.scenes.trace import make_views, trace_all

LoopKind = Literal["yaw", "orbit", "dolly", "strafe", "figure_eight"]
LOOP_KINDS: tuple[LoopKind, ...] = get_args(LoopKind)
CLEARANCE_M = 0.3
FOV_RAD = (math.radians(60), math.radians(85))  # of loops: what is evaluated
WALK_FOV_RAD = (math.radians(40), math.radians(100))
_NUM_STARTS, _NUM_CANDIDATES, _NUM_JUDGED = 512, 160, 12
_SIZES = (1.0, 1.0, 0.8, 0.6, 0.4, 0.25, 0.0)  # tries with shrinking paths

Rng = np.random.Generator
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Tracks:
    """Candidates: eyes (c, m, 3) in metres; yaw (0 = +z), pitch (> 0 = down), roll (c, m) in
    radians.
    """

    eye: Array
    yaw: Array
    pitch: Array
    roll: Array

    def __getitem__(self, item: NDArray[np.intp]) -> Tracks:
        return Tracks(self.eye[item], self.yaw[item], self.pitch[item], self.roll[item])

    def forward(self) -> Array:
        flat = np.cos(self.pitch)
        return np.stack([flat * np.sin(self.yaw), np.sin(self.pitch), flat * np.cos(self.yaw)], -1)

    def poses(self) -> Tensor:
        """(c, m, 4, 4) float64 world_from_camera."""
        eye, roll = torch.from_numpy(self.eye), torch.from_numpy(self.roll)
        poses = look_at(eye, eye + torch.from_numpy(self.forward()))
        cos, sin, zero = roll.cos(), roll.sin(), torch.zeros_like(roll)
        rows = [cos, -sin, zero, sin, cos, zero, zero, zero, zero + 1]
        poses[..., :3, :3] = poses[..., :3, :3] @ torch.stack(rows, -1).unflatten(-1, (3, 3))
        return poses


def closed_loop(scene: Scene, index: int, kind: LoopKind, num_frames: int, seed: int) -> Tensor:
    """(num_frames, 4, 4) float64 world_from_camera with pose[n - 1 - i] == pose[i]."""
    if kind not in LOOP_KINDS:
        raise ValueError(f"unknown loop {kind!r}, one of {', '.join(LOOP_KINDS)}")
    outward = (num_frames + 1) // 2
    rng = np.random.default_rng([seed, 11, LOOP_KINDS.index(kind)])
    poses = _best_path(scene, index, _LOOPS[kind], outward, rng)
    there = list(range(outward))
    return poses[there + there[: num_frames - outward][::-1]]


def random_walk(scene: Scene, index: int, num_frames: int, seed: int) -> Tensor:
    """(num_frames, 4, 4) float64 world_from_camera, smooth, CLEARANCE_M away from everything."""
    return _best_path(scene, index, _walk, num_frames, np.random.default_rng([seed, 12]))


def sample_cameras(
    scene: Scene,
    kind: LoopKind | None,
    num_frames: int,
    height: int,
    width: int,
    seeds: Sequence[int],
) -> Cameras:
    """Cameras (scenes, num_frames) on the CPU: per scene this kind of loop, or a walk for None."""
    if len(seeds) != len(scene):
        raise ValueError(f"need one seed per scene: {len(scene)} scenes, {len(seeds)} seeds")
    scene = scene.to("cpu")
    poses = [
        random_walk(scene, index, num_frames, seed)
        if kind is None
        else closed_loop(scene, index, kind, num_frames, seed)
        for index, seed in enumerate(seeds)
    ]
    limits = WALK_FOV_RAD if kind is None else FOV_RAD
    fovs = [np.random.default_rng([seed, 13]).uniform(*limits) for seed in seeds]
    intrinsics = torch.stack([intrinsics_from_fov(fov, height, width) for fov in fovs])
    shape = (len(scene), num_frames, 4)
    return Cameras(intrinsics[:, None].expand(shape), torch.stack(poses), height, width)


Propose = Callable[[Rng, Array, int, float], Tracks]


def _best_path(scene: Scene, index: int, propose: Propose, m: int, rng: Rng) -> Tensor:
    """(m, 4, 4): the candidate with the best views among those that touch nothing."""
    scene, moves = scene[index : index + 1], moving(scene)[index]
    whole, index = swept(scene), 0  # nobody walks where something may come along
    starts = _free_starts(whole, index, rng)
    for size in _SIZES:
        chosen = starts[rng.integers(0, len(starts), _NUM_CANDIDATES)]
        tracks = propose(rng, chosen, m, size)
        points = torch.from_numpy(tracks.eye).reshape(-1, 3)
        gaps = clearance(whole, index, points).reshape(_NUM_CANDIDATES, m).amin(1)
        fits = np.flatnonzero((gaps >= CLEARANCE_M).numpy())[:_NUM_JUDGED]
        if len(fits) >= _NUM_JUDGED // 3 or (len(fits) and size == 0.0):
            tracks = tracks[fits]
            return tracks.poses()[int(_view_scores(scene, tracks, moves).argmax())]
    raise ValueError(f"scene {int(scene.seeds[0])} has no room for a camera")


def _free_starts(scene: Scene, index: int, rng: Rng) -> Array:
    """(k, 3) eye positions at head height, the clearest ones of many."""
    low, high = scene.room_low[index].double().numpy(), scene.room_high[index].double().numpy()
    points = rng.uniform(low + 0.4, high - 0.4, (_NUM_STARTS, 3))
    points[:, 1] = -rng.uniform(1.2, 1.7, _NUM_STARTS)
    gaps = clearance(scene, index, torch.from_numpy(points)).numpy()
    roomy = points[gaps > 0.5]
    return roomy if len(roomy) else points[np.argsort(gaps)[-8:]]


def _view_scores(scene: Scene, tracks: Tracks, moves: Tensor) -> Tensor:
    """(c,) how open and varied the views of each candidate are, judged at four poses; and rather
    such that show what `moves` (p,).
    """
    c, m = tracks.yaw.shape
    some = np.linspace(0, m - 1, 4).round().astype(int)
    poses = tracks.poses()[:, some].reshape(1, -1, 4, 4)
    intrinsics = intrinsics_from_fov(1.2, 8, 12).expand(1, poses.shape[1], 4)
    views = make_views(scene, Cameras(intrinsics, poses, 8, 12))
    depth, key = (image.flatten(1) for image in trace_all(views))
    surface = (key >> 2).sort(-1).values
    num_surfaces = 1 + (surface.diff(dim=-1) != 0).sum(-1)
    main = (surface[:, :, None] == surface[:, None, :]).float().mean(-1).amax(-1)
    too_near = (depth < 1.0).float().mean(-1)
    score = 0.08 * num_surfaces.clamp(max=8) - 3 * too_near - 2 * (main - 0.55).clamp(min=0)
    score = score - (1.8 - depth.median(-1).values).clamp(min=0)
    flags = torch.nn.functional.pad(moves, (NUM_ROOM_FACES, 0))
    shown = flags[surface].float().mean(-1).clamp(max=0.1)
    return score.view(c, 4).amin(1) + _surprise(scene, tracks) + 6 * shown.view(c, 4).mean(1)


def _surprise(scene: Scene, tracks: Tracks) -> Tensor:
    """(c,) 0.5 where the start can't see what the end of the path sees: a corner was turned."""
    start, end = tracks.eye[:, :1], tracks.eye[:, -1:] + 1.0 * tracks.forward()[:, -1:]
    points = start + (end - start) * np.linspace(0, 1, 12)[:, None]
    gaps = clearance(scene, 0, torch.from_numpy(points).reshape(-1, 3))
    hidden = gaps.reshape(len(points), -1)[:, :-1].amin(1) < 0
    return 0.5 * hidden


def _uniform(rng: Rng, c: int, low: float, high: float) -> Array:
    return rng.uniform(low, high, (c, 1))


def _sign(rng: Rng, c: int) -> Array:
    return rng.choice([-1.0, 1.0], (c, 1))


def _smooth(p: Array) -> Array:
    p = np.clip(p, 0, 1)
    return np.asarray(p * p * (3 - 2 * p))


def _along(p: int) -> Array:
    return np.linspace(0.0, 1.0, p)[None]


def _tracks(rng: Rng, start: Array, yaw: Array, right: Array, ahead: Array, yaw0: Array) -> Tracks:
    """Offsets to the right and ahead (c, m) in the frame of yaw0 (c, 1); a pitch per candidate."""
    c, m = yaw.shape
    x = start[:, :1] + right * np.cos(yaw0) + ahead * np.sin(yaw0)
    z = start[:, 2:] - right * np.sin(yaw0) + ahead * np.cos(yaw0)
    y = np.broadcast_to(start[:, 1:2], (c, m))
    pitch = np.broadcast_to(_uniform(rng, c, -0.03, 0.2), (c, m))
    return Tracks(np.stack([x, y, z], -1), yaw, pitch, np.zeros((c, m)))


def _yaw(rng: Rng, start: Array, m: int, size: float) -> Tracks:
    c, yaw0 = len(start), _uniform(rng, len(start), -np.pi, np.pi)
    turn = _sign(rng, c) * np.radians(_uniform(rng, c, 50, 90))
    still = np.zeros((c, m))
    return _tracks(rng, start, yaw0 + turn * _along(m), still, still, yaw0)


def _orbit(rng: Rng, start: Array, m: int, size: float) -> Tracks:
    c, yaw0 = len(start), _uniform(rng, len(start), -np.pi, np.pi)
    radius = _uniform(rng, c, 1.5, 2.8)
    angle = _sign(rng, c) * size * _uniform(rng, c, 1.0, 2.5) / radius * _along(m)
    right, ahead = -radius * np.sin(angle), radius * (1 - np.cos(angle))
    return _tracks(rng, start, yaw0 + angle, right, ahead, yaw0)


def _dolly(rng: Rng, start: Array, m: int, size: float) -> Tracks:
    c, yaw0 = len(start), _uniform(rng, len(start), -np.pi, np.pi)
    turn = _sign(rng, c) * np.radians(_uniform(rng, c, 55, 90))
    yaw = turn * _smooth((_along(m) - 0.25) / 0.7)
    step = size * _uniform(rng, c, 1.5, 2.5) / max(m - 1, 1)
    return _follow(rng, start, yaw0, yaw, step * np.ones((c, m)), np.zeros((c, 1)))


def _strafe(rng: Rng, start: Array, m: int, size: float) -> Tracks:
    c, yaw0 = len(start), _uniform(rng, len(start), -np.pi, np.pi)
    right = _sign(rng, c) * size * _uniform(rng, c, 1.0, 2.5) * _along(m)
    return _tracks(rng, start, np.broadcast_to(yaw0, (c, m)), right, 0 * right, yaw0)


def _figure_eight(rng: Rng, start: Array, m: int, size: float) -> Tracks:
    c, yaw0 = len(start), _uniform(rng, len(start), -np.pi, np.pi)
    phase = 2 * np.pi * _along(m) * _sign(rng, c)
    width = size * _uniform(rng, c, 0.8, 1.2)
    right, ahead = 0.5 * width * np.sin(phase), 0.25 * width * np.sin(2 * phase)
    return _tracks(rng, start, yaw0 + 0.3 * np.sin(phase), right, ahead, yaw0)


def _walk(rng: Rng, start: Array, m: int, size: float) -> Tracks:
    """Per frame 0.01 to 0.25 m and up to 8 degrees, both changing slowly; mostly moving ahead. The
    camera nods, rolls and rises a little, as one in a hand does.
    """
    c, yaw0 = len(start), _uniform(rng, len(start), -np.pi, np.pi)
    frame = np.arange(m, dtype=np.float64)[None]
    wave = np.sin(frame * _uniform(rng, c, 0.05, 0.25) + _uniform(rng, c, 0, 6.28))
    rate = np.radians(_uniform(rng, c, 0.8, 6.0)) * (1 + 0.33 * wave)
    swing = np.sign(np.sin(frame * np.pi / _uniform(rng, c, 12, 40) + _uniform(rng, c, 0, 6.28)))
    speed = size * _uniform(rng, c, 0.02, 0.19) * (1 + 0.28 * np.roll(wave, 7, axis=0))
    course = rng.normal(0, 0.9, (c, 1)) + 0.3 * np.sin(frame * 0.15)
    yaw = np.cumsum(rate * _smoothed(swing), 1)
    tracks = _follow(rng, start, yaw0, yaw - yaw[:, :1], speed, course)
    eye = tracks.eye.copy()
    eye[..., 1] += size * _uniform(rng, c, 0, 0.25) * _drift(rng, c, frame)
    pitch = tracks.pitch - 0.06 + _uniform(rng, c, 0, 0.16) * _drift(rng, c, frame)
    roll = np.radians(_uniform(rng, c, 0, 5)) * _drift(rng, c, frame)
    return Tracks(eye, tracks.yaw, pitch, roll)


def _drift(rng: Rng, c: int, frame: Array) -> Array:
    return np.asarray(np.sin(frame * _uniform(rng, c, 0.03, 0.2) + _uniform(rng, c, 0, 6.28)))


def _smoothed(values: Array) -> Array:
    """Box filter over 5 frames along the second axis."""
    padded = np.pad(values, ((0, 0), (2, 2)), mode="edge")
    return np.asarray(sum(padded[:, k : k + values.shape[1]] for k in range(5)) / 5)


def _follow(rng: Rng, start: Array, yaw0: Array, yaw: Array, speed: Array, course: Array) -> Tracks:
    """Move by `speed` metres a frame in the direction of gaze + course; yaw is relative to yaw0."""
    heading = yaw + course
    zero = np.zeros((len(start), 1))
    right = np.concatenate([zero, np.cumsum(speed * np.sin(heading), 1)[:, :-1]], 1)
    ahead = np.concatenate([zero, np.cumsum(speed * np.cos(heading), 1)[:, :-1]], 1)
    return _tracks(rng, start, yaw0 + yaw, right, ahead, yaw0)


_LOOPS: dict[LoopKind, Propose] = {
    "yaw": _yaw,
    "orbit": _orbit,
    "dolly": _dolly,
    "strafe": _strafe,
    "figure_eight": _figure_eight,
}
