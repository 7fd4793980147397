"""A stored World replayed for looking at: its memory, and what each segment did to it.

No model is loaded: points take their colours from the pictures in which they were seen. Of an
observation that was not shown its cells' colours are stored; where they are not (they once were
not), points are grey.

Axis legend: n points, t frames of a segment, m sources.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from service.errors import SegmentCorrupt
from service.store.segments import parse_segment
from worker.geometry import Cameras, cat_cameras
from worker.memory import Delta, Memory, create_memory
from worker.memory.latent import LatentMemoryConfig
from worker.serving.snapshot import unpack_segment
from worker.world import Increment

GREY = 128


@dataclass(frozen=True)
class Source:
    """One view that points may stem from; sources are numbered as they come."""

    frame: int | None  # its number, None if it was not shown
    observed: bool
    coverage: float  # part of it that the memory knew beforehand
    num_written: int  # points that it added
    picture: NDArray[np.uint8] | None  # (H, W, 3), or (h, w, 3) if it was not shown


@dataclass(frozen=True)
class Size:
    """What the memory held after a segment."""

    num_sources: int  # views up to then
    num_points: int
    num_bytes: int


@dataclass(frozen=True)
class Cloud:
    """The points that live."""

    positions: NDArray[np.float64]  # (n, 3) metres in the world
    colours: NDArray[np.uint8]  # (n, 3)
    source: NDArray[np.int64]  # (n,)
    quality: NDArray[np.float32]  # (n,)


@dataclass(frozen=True)
class History:
    memory: Memory
    sources: list[Source]
    cameras: Cameras  # (m,)
    sizes: list[Size]

    def cloud(self) -> Cloud:
        """The points in the order of their ids."""
        state = self.memory.state()
        if not state:
            none = np.zeros((0, 3))
            return Cloud(none, none.astype(np.uint8), np.zeros(0, int), np.zeros(0, np.float32))
        positions = state["positions"]
        source = state["source"].long()
        return Cloud(
            positions.numpy(),
            self._colours(positions, source),
            source.numpy(),
            state["quality"].numpy(),
        )

    def _colours(self, positions: Tensor, source: Tensor) -> NDArray[np.uint8]:
        """(n, 3): the pixel that each point falls on in the picture that it stems from."""
        colours = np.full((len(source), 3), GREY, np.uint8)
        for number, one in enumerate(self.sources):
            rows = (source == number).nonzero()[:, 0]
            if one.picture is not None and len(rows):
                camera = self.cameras[number].resized(*one.picture.shape[:2])
                line, column = pixels_of(positions[rows], camera)
                colours[rows.numpy()] = one.picture[line, column]
        return colours


def pixels_of(positions: Tensor, camera: Cameras) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(n,) line and (n,) column of positions (n, 3) in one camera's picture, clipped to it."""
    matrix = camera.camera_from_world
    local = positions @ matrix[:3, :3].T + matrix[:3, 3]
    fx, fy, cx, cy = camera.intrinsics
    column = (local[:, 0] / local[:, 2] * fx + cx).long().clamp(0, camera.width - 1)
    line = (local[:, 1] / local[:, 2] * fy + cy).long().clamp(0, camera.height - 1)
    return line.numpy(), column.numpy()


def replay(memory_name: str, segments: Sequence[bytes]) -> History:
    """The World that these segments (in order) make; raises SegmentCorrupt.

    An rgb memory is replayed as what it is inside: a latent memory of pixels.
    """
    if not segments:
        raise SegmentCorrupt("there is no segment: this world has no frame yet")
    memory: Memory | None = None
    sources: list[Source] = []
    cameras: list[Cameras] = []
    sizes: list[Size] = []
    for data in segments:
        header, increment = unpack_segment(data)
        grid = _grid(memory_name, increment)
        memory = memory or _empty(memory_name, grid, increment)
        memory.apply(increment.delta)
        written = num_written(increment.delta, len(increment.cameras), grid)
        sources += _sources(header.kind in ("init", "observe"), data, increment, written)
        cameras.append(increment.cameras)
        stats = memory.stats()
        sizes.append(Size(len(sources), stats.num_points, stats.num_bytes))
    assert memory is not None
    return History(memory, sources, cat_cameras(cameras), sizes)


def num_written(delta: Delta, num_views: int, grid: tuple[int, int]) -> list[int]:
    """Points that each view of an increment added; a point's id names its frame. Views that were
    seen before and are placed anew come first and are not counted.
    """
    serial = torch.div(delta.ids, grid[0] * grid[1], rounding_mode="floor")
    frame = torch.searchsorted(delta.serials, serial)
    counts: list[int] = torch.bincount(frame, minlength=len(delta.serials)).tolist()
    return counts[-num_views:] or [0] * num_views


def _grid(name: str, increment: Increment) -> tuple[int, int]:
    pixels = (increment.cameras.height, increment.cameras.width)
    cells = (increment.latents.shape[-2], increment.latents.shape[-1])
    return pixels if name == "rgb" else cells


def _empty(name: str, grid: tuple[int, int], increment: Increment) -> Memory:
    channels, cfg = increment.delta.tokens.shape[1], LatentMemoryConfig(has_relief=name != "rgb")
    return create_memory("null" if name == "null" else "latent", channels, grid, cfg=cfg)


def _sources(
    observed: bool, data: bytes, increment: Increment, written: Sequence[int]
) -> list[Source]:
    """One for each view of a segment."""
    _, images = parse_segment(data)
    found = []
    for i in range(len(increment.cameras)):
        shown = i < len(images)
        picture = None if increment.colours is None else increment.colours[i].numpy()
        if shown:
            picture = np.asarray(Image.open(io.BytesIO(images[i])).convert("RGB"))
        found.append(
            Source(
                frame=increment.frame_indices[i] if shown else None,
                observed=observed,
                coverage=float(increment.coverage[i].mean()),
                num_written=written[i],
                picture=picture,
            )
        )
    return found
