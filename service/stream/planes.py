"""Depth and coverage of a frame, for streams that ask: read from the frame's segment.

The worker stores them there anyway, so they cost nothing unless somebody wants them; who does pays
one read of the store per chunk.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from service.control.frames import Frame
from service.control.plane import ControlPlane
from service.errors import SegmentMissing
from service.store.segments import read_planes
from service.wire import world_pb2 as pb

PlaneName = Literal["depth", "coverage"]
KINDS = {"depth": pb.PLANE_KIND_DEPTH, "coverage": pb.PLANE_KIND_COVERAGE}


class Planes:
    """Of one stream; keeps the chunk read last, by branch and frame."""

    def __init__(self, control: ControlPlane, session: str, wanted: Iterable[PlaneName]) -> None:
        self._control, self._session, self._wanted = control, session, tuple(wanted)
        self._chunk: dict[tuple[int, int], dict[str, NDArray[np.float32]]] = {}

    async def of(self, frame: Frame) -> list[pb.Plane]:
        """What is wanted of this frame and still kept."""
        if not self._wanted:
            return []
        place = (frame.branch, frame.frame)
        if place not in self._chunk:
            await self._read(frame)
        found = self._chunk.get(place, {})
        return [_plane(name, found[name]) for name in self._wanted if name in found]

    async def _read(self, frame: Frame) -> None:
        self._chunk = {}
        entry = await self._control.frames.segment_of(self._session, frame.frame)
        if entry is None:
            return
        try:
            data = await self._control.segments.get(entry.home or self._session, entry.id)
        except SegmentMissing:
            return  # rewound and collected meanwhile
        self._chunk = read_planes(data)


def _plane(name: str, values: NDArray[np.float32]) -> pb.Plane:
    height, width = values.shape
    data = values.astype("<f4")
    if name == "coverage":
        data = np.clip(np.round(255 * values), 0, 255).astype(np.uint8)
    return pb.Plane(kind=KINDS[name], width=width, height=height, data=data.tobytes())
