"""A world's point cloud: read from the store when somebody asks, whether a worker runs or not.

First all segments pass by, for the points that live (ledger.py); then those whose pictures the
chosen points come from, for their colours: the mean over a point's cell in the picture that it
stems from. Observations that were not shown have no picture; their segments hold colours of the
cells, but for those that were written before there was such a thing: their points are grey.
Trade-off: a long world is read once in full for each cloud, a few hundred megabytes a second, and
neither kept nor copied; so few are made at a time, and of worlds within a limit.

Axis legend: n points, t views of a segment, h w the grid, H W pixels.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.control.heads import Head, Heads
from service.errors import Conflict, SegmentCorrupt
from service.limits import MAX_CLOUD_BYTES, MAX_CLOUDS
from service.points.ledger import Chosen, Ledger
from service.store.segments import COLOURS, SegmentStore, parse_segment, read_arrays
from service.video import decode_frame

Colours = NDArray[np.uint8]

GREY = 128
AT_ONCE, AT_ONCE_BYTES = 16, 32 << 20  # segments in memory together, one at least


@dataclass(frozen=True)
class Cloud:
    positions: NDArray[np.float32]  # (n, 3) metres, OpenCV axes
    colours: Colours  # (n, 3) sRGB
    num_remembered: int  # points of the world; n of them are here


class Clouds:
    def __init__(self, store: SegmentStore, heads: Heads, max_bytes: int = MAX_CLOUD_BYTES) -> None:
        self._store, self._heads, self._max_bytes = store, heads, max_bytes
        self._turns = asyncio.Semaphore(MAX_CLOUDS)

    async def head(self, session: str) -> Head:
        """The world as it stands; raises UnknownSession, SessionDeleted."""
        return await self._heads.current(session)

    async def read(self, head: Head, max_points: int) -> Cloud:
        """Its points, at most so many.

        Raises Conflict for a world that is too long, SegmentMissing, SegmentCorrupt, StoreDown.
        """
        size = sum(entry.num_bytes for entry in head.manifest)
        if size > self._max_bytes:
            raise Conflict(
                f"the record of session {head.session!r} has {size:,} bytes, at most "
                f"{self._max_bytes:,} are read for a point cloud: fork it from an earlier frame"
            )
        async with self._turns:
            lens = head.spec.intrinsics
            ledger = Ledger((lens.height, lens.width) if head.spec.memory == "rgb" else None)
            every = range(len(head.manifest))
            async for _, some in self._segments(head, every):
                await asyncio.to_thread(_read, ledger, some)
            chosen = await asyncio.to_thread(ledger.choose, max_points)
            colours = chosen.colours
            if colours is None:
                colours = await self._painted(head, chosen, ledger)
        return Cloud(chosen.positions, colours, chosen.num_remembered)

    async def _painted(self, head: Head, chosen: Chosen, ledger: Ledger) -> Colours:
        painting = Painting(chosen, ledger)
        async for numbers, some in self._segments(head, painting.segments):
            await asyncio.to_thread(painting.add, numbers, some)
        return painting.colours

    async def _segments(
        self, head: Head, numbers: Sequence[int]
    ) -> AsyncIterator[tuple[Sequence[int], Sequence[bytes]]]:
        """These segments and their bytes, a few at a time."""
        start = 0
        while start < len(numbers):
            end, size = start, 0
            while end < min(len(numbers), start + AT_ONCE) and size < AT_ONCE_BYTES:
                size += head.manifest[numbers[end]].num_bytes
                end += 1
            some = numbers[start:end]
            entries = [head.manifest[number] for number in some]
            reads = (self._store.get(one.home or head.session, one.id) for one in entries)
            yield some, await asyncio.gather(*reads)
            start = end


def _read(ledger: Ledger, segments: Sequence[bytes]) -> None:
    for data in segments:
        ledger.read(data)


class Painting:
    """Colours of points from the segments that hold their views."""

    def __init__(self, chosen: Chosen, ledger: Ledger) -> None:
        self.colours = np.full((len(chosen.view), 3), GREY, np.uint8)
        self._cell, self._grid = chosen.cell, ledger.grid
        self._first = np.cumsum([0, *ledger.num_views])  # view of each segment
        self._rows = np.argsort(chosen.view, kind="stable")
        self._view = chosen.view[self._rows]
        seen = np.searchsorted(self._first, np.unique(self._view), side="right") - 1
        self.segments: list[int] = np.unique(seen).tolist()

    def add(self, numbers: Sequence[int], segments: Sequence[bytes]) -> None:
        """Segments, each with its number; raises SegmentCorrupt."""
        for number, data in zip(numbers, segments, strict=True):
            pictures = parse_segment(data)[1]
            stored = read_arrays(data, [COLOURS]).get(COLOURS)
            for view in range(self._first[number], self._first[number + 1]):
                start, end = np.searchsorted(self._view, [view, view + 1])
                at, rows = view - self._first[number], self._rows[start:end]
                if start < end and at < len(pictures):
                    self._paint(rows, mean_colours(pictures[at], self._grid))
                elif start < end and stored is not None:
                    self._paint(rows, stored[at] if at < len(stored) else stored[:0])

    def _paint(self, rows: NDArray[np.int64], cells: Colours) -> None:
        if cells.shape != (*self._grid, 3) or cells.dtype != np.uint8:
            raise SegmentCorrupt(f"colours of {cells.shape} are not those of {self._grid} cells")
        self.colours[rows] = cells.reshape(-1, 3)[self._cell[rows]]


def mean_colours(picture: bytes, grid: tuple[int, int]) -> Colours:
    """(h, w, 3) of an encoded picture; raises SegmentCorrupt."""
    try:
        pixels = decode_frame(picture)
    except (OSError, ValueError, SyntaxError) as error:
        raise SegmentCorrupt(f"a stored picture can't be opened: {error}") from error
    h, w = grid
    if pixels.shape[0] % h or pixels.shape[1] % w:
        raise SegmentCorrupt(f"a picture of {pixels.shape[:2]} pixels has not {grid} cells")
    blocks = pixels.reshape(h, pixels.shape[0] // h, w, pixels.shape[1] // w, 3)
    mean: Colours = blocks.mean(axis=(1, 3)).round().astype(np.uint8)
    return mean
