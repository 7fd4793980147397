"""Finished videos of this process, the most recently used: players ask for one file in many parts.

Bounded by bytes; a video that is not here is made again, bit for bit the same.
"""

from __future__ import annotations

from collections import OrderedDict


class VideoCache:
    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._num_bytes = max_bytes, 0
        self._videos: OrderedDict[tuple[object, ...], bytes] = OrderedDict()

    def get(self, key: tuple[object, ...]) -> bytes | None:
        if key in self._videos:
            self._videos.move_to_end(key)
        return self._videos.get(key)

    def put(self, key: tuple[object, ...], video: bytes) -> None:
        """Keep it, unless it alone is more than there is room for."""
        if key in self._videos or len(video) > self._max_bytes:
            return
        self._videos[key] = video
        self._num_bytes += len(video)
        while self._num_bytes > self._max_bytes:
            _, oldest = self._videos.popitem(last=False)
            self._num_bytes -= len(oldest)
