"""Which points a world remembers: those that its segments added, less those that they removed.

A point's id is the serial number of the frame that saw it times the cells of a frame, plus its cell
(worker/memory/points.py). Ids ascend and never return, so a binary search takes the removed ones
out, now and then. Of a world with more points than can be held only those with the lowest `rank`
are followed: a function of the id alone, so that any number of points is an even choice, and the
same one in every read.

Axis legend: n points, f frames (as the memory counts them), v views (as the world counts them: what
was shown or observed), h w the grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.errors import SegmentCorrupt
from service.limits import MAX_HELD_POINTS
from service.store.segments import read_arrays

Array = NDArray[Any]

DELTA = {  # the tensors of a change: type, and shape after the first axis
    "delta.ids": ("<i8", ()),
    "delta.depth": ("<f4", ()),
    "delta.removed": ("<i8", ()),
    "delta.serials": ("<i8", ()),
    "delta.source": ("<i4", ()),
    "delta.intrinsics": ("<f8", (4,)),
    "delta.world_from_camera": ("<f8", (4, 4)),
}
REMOVED, FRAMES = "delta.removed", (*DELTA,)[3:]
TOKENS = "delta.tokens"  # of pixels: their colours
GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 divided by the golden ratio
MIN_PENDING = 1 << 18  # rows that are not worth a pass
CHUNK = 1 << 17  # points placed at once


@dataclass(frozen=True)
class Chosen:
    """The points that go into a cloud, in the order of their ids."""

    positions: NDArray[np.float32]  # (n, 3) metres, OpenCV axes
    cell: NDArray[np.int64]  # (n,) line * w + column in the view it stems from
    view: NDArray[np.int64]  # (n,)
    colours: NDArray[np.uint8] | None  # (n, 3) where the memory itself holds them
    num_remembered: int  # of which these were chosen


class Ledger:
    """Segments in, in order; the points that live out."""

    def __init__(self, pixels: tuple[int, int] | None, max_held: int = MAX_HELD_POINTS) -> None:
        """`pixels`: the height and width of a frame, if the memory's cells are pixels."""
        self._pixels, self._max_held = pixels, max_held
        self.grid = pixels or (0, 0)  # of another memory its first segment tells
        self.num_views: list[int] = []  # of each segment
        self.num_remembered = 0
        self._limit = np.uint64(2**64 - 1)  # ranks above it are not followed
        self._last_id = -1
        self._num_pending = 0
        self._ids, self._removed = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        self._depth, self._colours = [np.zeros(0, np.float32)], [np.zeros((0, 3), np.uint8)]
        self._frames = {name: [np.zeros((0, *DELTA[name][1]), DELTA[name][0])] for name in FRAMES}

    def read(self, data: bytes) -> None:
        """The next segment; raises SegmentCorrupt."""
        names = (*DELTA, "coverage", TOKENS) if self._pixels else (*DELTA, "coverage")
        arrays = read_arrays(data, names)
        self._check(arrays)
        ids, removed = arrays["delta.ids"], arrays["delta.removed"]
        self.num_views.append(len(arrays["coverage"]))
        self.num_remembered += len(ids) - len(removed)
        self._removed.append(removed[rank(removed) <= self._limit])
        followed = rank(ids) <= self._limit
        self._ids.append(ids[followed])
        self._depth.append(arrays["delta.depth"][followed])
        if self._pixels:
            self._colours.append(colours_of(arrays[TOKENS][followed]))
        if len(ids):
            self._last_id = int(ids[-1])
            for name, rows in self._frames.items():
                rows.append(arrays[name])
        self._num_pending += len(ids) + len(removed)
        if self._num_pending > max(min(MIN_PENDING, self._max_held), len(self._ids[0])):
            self._settle()

    def choose(self, max_points: int) -> Chosen:
        """At most so many of the points that live; raises SegmentCorrupt."""
        self._settle()
        ids = self._ids[0]
        rows = np.arange(len(ids))
        if len(ids) > max_points:
            rows = np.sort(np.argpartition(rank(ids), max_points)[:max_points])
        serial, cell = np.divmod(ids[rows], max(1, self.grid[0] * self.grid[1]))
        frames = {name: np.concatenate(parts) for name, parts in self._frames.items()}
        frame = _found(
            frames["delta.serials"], serial, "has points of frames that it does not name"
        )
        view = frames["delta.source"][frame].astype(np.int64)
        if np.any((view < 0) | (view >= sum(self.num_views))):
            raise SegmentCorrupt("a world has points of views that it does not have")
        cameras = frames["delta.intrinsics"], frames["delta.world_from_camera"]
        positions = _placed(cell, self.grid[1], self._depth[0][rows], frame, *cameras)
        colours = self._colours[0][rows] if self._pixels else None
        return Chosen(positions, cell, view, colours, self.num_remembered)

    def _check(self, arrays: dict[str, Array]) -> None:
        """What an import from elsewhere might have wrong."""
        forms = {name: (one.dtype.str, one.shape[1:]) for name, one in arrays.items()}
        expected = DELTA | ({TOKENS: ("<u2", (3,))} if self._pixels else {})
        coverage = arrays.get("coverage", np.zeros(0))
        if coverage.ndim != 3 or any(forms.get(name) != form for name, form in expected.items()):
            raise SegmentCorrupt(f"a segment's points have another form: {forms}")
        self.grid = self.grid if any(self.grid) else coverage.shape[1:]
        ids, of_frames = arrays["delta.ids"], {len(arrays[name]) for name in FRAMES}
        of_points = {len(arrays[name]) for name in expected if name not in (*FRAMES, REMOVED)}
        fits = len(of_frames) == len(of_points) == 1
        fits &= bool(self._pixels) or self.grid == coverage.shape[1:]
        if not fits or np.any(np.diff(ids, prepend=self._last_id) <= 0):
            raise SegmentCorrupt("a segment's points do not fit together, or to those before")

    def _settle(self) -> None:
        """One array of each kind, without what was removed and what there is no room for."""
        ids = np.concatenate(self._ids)
        removed = np.concatenate(self._removed)
        lives = np.ones(len(ids), bool)
        lives[_found(ids, removed, "removes points that it does not have")] = False
        while np.count_nonzero(lives) > self._max_held:
            self._limit //= np.uint64(2)
            lives &= rank(ids) <= self._limit
        self._ids, self._removed = [ids[lives]], [removed[:0]]
        self._depth = [np.concatenate(self._depth)[lives]]
        if self._pixels:
            self._colours = [np.concatenate(self._colours)[lives]]
        self._num_pending = 0


def rank(ids: Array) -> NDArray[np.uint64]:
    """Points with the lowest of these are an even choice of all: multiples of the golden ratio,
    modulo 1, fill an interval evenly, however many they are (Knuth, volume 3, section 6.4).
    """
    return ids.astype(np.uint64) * GOLDEN


def colours_of(tokens: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Pixels as an rgb memory keeps them, the bits of bfloat16 in [-1, 1]."""
    values = (tokens.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(invalid="ignore"):
        return ((values.clip(-1, 1) + 1) * 127.5).round().astype(np.uint8)


def _found(ascending: Array, wanted: Array, otherwise: str) -> NDArray[np.int64]:
    """Where each of the wanted values is; raises SegmentCorrupt if one is not there."""
    at = np.searchsorted(ascending, wanted)
    if np.any(at >= len(ascending)) or not np.array_equal(ascending[at], wanted):
        raise SegmentCorrupt(f"a world {otherwise}")
    return at


def _placed(
    cell: Array, width: int, depth: Array, frame: Array, intrinsics: Array, poses: Array
) -> NDArray[np.float32]:
    """(n, 3): on the ray through each cell's centre, as far as it is deep."""
    positions = np.empty((len(cell), 3), np.float32)
    for start in range(0, len(cell), CHUNK):
        part = slice(start, start + CHUNK)
        row, column = np.divmod(cell[part], width)
        fx, fy, cx, cy = intrinsics[frame[part]].T
        with np.errstate(all="ignore"):  # of a file made by others; checked below
            ray = np.stack([(column + 0.5 - cx) / fx, (row + 0.5 - cy) / fy, np.ones(len(row))], 1)
            pose = poses[frame[part]]
            turned = np.einsum("nij,nj->ni", pose[:, :3, :3], ray * depth[part, None])
            positions[part] = pose[:, :3, 3] + turned
    if not np.isfinite(positions).all():
        raise SegmentCorrupt("a world has points that are nowhere")
    return positions
