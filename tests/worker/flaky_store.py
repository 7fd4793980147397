"""A segment store that fails now and then."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from service.errors import StoreDown
from service.store.segments import SegmentStore


class FlakyStore(SegmentStore):
    """Fails at some puts."""

    def __init__(self, url: str, fails_at: set[int]) -> None:
        super().__init__(url)
        self._fails_at, self._puts = fails_at, 0

    async def put_all(self, segments: Sequence[tuple[str, str, bytes]]) -> list[StoreDown | None]:
        self._puts += 1
        if self._puts in self._fails_at:
            await asyncio.sleep(0.02)  # the chunk after it is computed meanwhile
            return [StoreDown("this one is lost") for _ in segments]
        return await super().put_all(segments)
