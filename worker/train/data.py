"""Rendered walks on disk: what all training stages read.

A set is a folder of plain arrays (rgb, depth, moving, poses, intrinsics), rendered scene by scene
from consecutive seeds and resumable: a counter file says how many scenes are done, another with
which settings, as no others can go on there. Three quarters
are random walks, the rest the first legs of the closed loops; in a share of them, things move.
Seeds below HELD_OUT_SEED train; the rest validate and test.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from worker.geometry import Cameras
from worker.scenes.paths import LOOP_KINDS, sample_cameras
from worker.scenes.render import render
from worker.scenes.scene import sample_scenes
from worker.train.loop import refuse_other_origin

VERSION = 2  # of what the same settings render
SCENES_PER_CALL = 4


@dataclass(frozen=True)
class DataConfig:
    first_seed: int
    num_scenes: int
    num_frames: int = 12
    height: int = 192
    width: int = 320
    every: int = 1  # of a walk's frames is kept: fewer frames that differ more
    dynamic_share: float = 0.4  # of walks in which things move; a fifth of these never look there


class Calls(Dataset[int]):
    """Renders a few scenes into a set as they are asked for, by the number of the first one."""

    def __init__(self, walks: Walks) -> None:
        self.walks = walks

    def __getitem__(self, at: int) -> int:
        cfg = self.walks.cfg
        count = min(SCENES_PER_CALL, cfg.num_scenes - at)
        self.walks.render(at, [cfg.first_seed + at + i for i in range(count)])
        return count


class Walks:
    """num_scenes walks of num_frames frames, memory-mapped."""

    def __init__(self, folder: Path, cfg: DataConfig, num_workers: int = 0) -> None:
        """Renders what is missing, in further processes if told so; raises ValueError if the folder
        has a set of other settings.
        """
        self.folder, self.cfg = folder, cfg
        folder.mkdir(parents=True, exist_ok=True)
        self._bind()
        self._map()
        self._render_missing(num_workers)

    def __getstate__(self) -> tuple[Path, DataConfig]:
        return self.folder, self.cfg

    def __setstate__(self, state: tuple[Path, DataConfig]) -> None:
        """Maps the files anew: a pickled map would be a copy of all that it shows."""
        self.folder, self.cfg = state
        self._map()

    def images(self, scenes: Tensor, frames: Tensor) -> Tensor:
        """scenes (b,), frames (b, k) -> (b, k, 3, H, W) float32 in [-1, 1]."""
        return torch.from_numpy(self.rgb[_rows(scenes, frames)]).float() / 127.5 - 1

    def depths(self, scenes: Tensor, frames: Tensor) -> Tensor:
        """(b, k, H, W) float32 z-depth in metres."""
        return torch.from_numpy(self.depth[_rows(scenes, frames)]).float()

    def motion_masks(self, scenes: Tensor, frames: Tensor) -> Tensor:
        """(b, k, H, W) bool: pixels that show something that moves."""
        return torch.from_numpy(self.moving[_rows(scenes, frames)])

    def cameras(self, scenes: Tensor, frames: Tensor) -> Cameras:
        """Cameras of leading shape (b, k) at the frames' size."""
        index = _rows(scenes, frames)
        return Cameras(
            torch.from_numpy(self.intrinsics[index]),
            torch.from_numpy(self.poses[index]),
            self.cfg.height,
            self.cfg.width,
        )

    def _map(self) -> None:
        shape = (self.cfg.num_scenes, self.cfg.num_frames)
        size = (self.cfg.height, self.cfg.width)
        self.rgb = self._array("rgb", (*shape, 3, *size), np.uint8)
        self.depth = self._array("depth", (*shape, *size), np.float16)
        self.moving = self._array("moving", (*shape, *size), np.bool_)
        self.poses = self._array("poses", (*shape, 4, 4), np.float64)
        self.intrinsics = self._array("intrinsics", (*shape, 4), np.float64)

    def _array(self, name: str, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        path = self.folder / f"{name}.npy"
        if not path.exists():
            np.lib.format.open_memmap(path, "w+", dtype=dtype, shape=shape).flush()
        return np.lib.format.open_memmap(path, "r+")

    def _bind(self) -> None:
        asked = {"version": VERSION, **asdict(self.cfg)}
        if not (self.folder / "rgb.npy").exists():
            self._put("settings", asked)
        refuse_other_origin(self.folder, self._get("settings"), asked)

    def _get(self, name: str) -> dict[str, Any]:
        path = self.folder / f"{name}.json"
        found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return found

    def _put(self, name: str, values: dict[str, Any]) -> None:
        partial = self.folder / f"{name}.partial"
        partial.write_text(json.dumps(values))
        partial.replace(self.folder / f"{name}.json")

    def _render_missing(self, num_workers: int) -> None:
        done = self._get("progress").get("scenes", 0)
        with tqdm(
            total=self.cfg.num_scenes, initial=done, desc=self.folder.name, mininterval=10
        ) as bar:
            calls = range(done, self.cfg.num_scenes, SCENES_PER_CALL)
            for count in DataLoader(Calls(self), None, sampler=calls, num_workers=num_workers):
                done += count
                self._put("progress", {"scenes": done})
                bar.update(count)

    @torch.no_grad()
    def render(self, at: int, seeds: Sequence[int]) -> None:
        # One kind per call: every fourth call walks the five loops in turn.
        call = at // SCENES_PER_CALL
        dynamic = (
            call * 7 % 20 < 20 * self.cfg.dynamic_share
        )  # 7 and 20 share no factor: spread evenly
        scenes = sample_scenes(seeds, dynamic=dynamic)
        kind = LOOP_KINDS[call // 4 % len(LOOP_KINDS)] if call % 4 == 3 else None
        length = self.cfg.num_frames * self.cfg.every
        num_frames = length if kind is None else 2 * length
        cameras = sample_cameras(
            scenes, kind, num_frames, self.cfg.height, self.cfg.width, list(seeds)
        )[:, : length : self.cfg.every]
        frames = render(scenes, cameras, times=torch.arange(0, length, self.cfg.every))
        there = slice(at, at + len(seeds))
        self.rgb[there] = ((frames.rgb + 1) * 127.5).round().clamp(0, 255).byte().numpy()
        self.depth[there] = frames.depth.half().numpy()
        self.moving[there] = frames.moving.numpy()
        self.poses[there] = cameras.world_from_camera.numpy()
        self.intrinsics[there] = cameras.intrinsics.numpy()


def _rows(scenes: Tensor, frames: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """As NumPy indexes: it takes a tensor of one element for a plain number."""
    return scenes[:, None].numpy(), frames.numpy()


def window(num_frames: int, length: int, generator: torch.Generator, batch: int) -> Tensor:
    """(batch, length) distinct frame numbers of one walk, in random order."""
    keys = torch.rand(batch, num_frames, generator=generator)
    return keys.argsort(dim=1)[:, :length]
