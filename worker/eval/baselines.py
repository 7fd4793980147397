"""What the latent memory is compared with, behind the same contract.

`last-frame` remembers nothing but the most recent frame: how far short-term context alone goes.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from worker.geometry import Cameras
from worker.memory import create_memory
from worker.memory.base import Delta, Memory, MemoryStats, ReadMode, Readout


class LastFrameMemory:
    """A latent memory that forgets everything at each write."""

    def __init__(self, channels: int, grid: tuple[int, int]) -> None:
        self._channels, self._grid = channels, grid
        self._held: Memory = create_memory("latent", channels, grid)

    def write(
        self,
        tokens: Tensor,
        depth: Tensor,
        cameras: Cameras,
        source: Sequence[int],
        confidence: Tensor | None = None,
        mask: Tensor | None = None,
        observed: bool = False,
        readout: Readout | None = None,
        images: Tensor | None = None,
    ) -> Delta:
        self._held = create_memory("latent", self._channels, self._grid)
        last = slice(-1, None)
        return self._held.write(
            tokens[last],
            depth[last],
            cameras[last],
            list(source)[last],
            None if confidence is None else confidence[last],
            None if mask is None else mask[last],
            observed,
        )

    def apply(self, delta: Delta) -> None:
        self._held = create_memory("latent", self._channels, self._grid)
        self._held.apply(delta)

    def read(self, cameras: Cameras, mode: ReadMode = "soft") -> Readout:
        return self._held.read(cameras, mode)

    def stats(self) -> MemoryStats:
        return self._held.stats()

    def state(self) -> dict[str, Tensor]:
        return self._held.state()
