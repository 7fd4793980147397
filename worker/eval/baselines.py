"""What the latent memory is compared with, behind the same contract.

`last-frame` remembers nothing but the most recent frame: how far short-term context alone goes.
`no-fusion` adds every cell that it is shown: what it is worth to recognise a place that was seen
before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor
from torch.nn import functional as F

from worker.geometry import Cameras
from worker.memory import create_memory
from worker.memory.base import Delta, Memory, MemoryStats, ReadMode, Readout
from worker.memory.merge import merged


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

    def forget(self, source: Sequence[int], cells: Tensor | None = None) -> Delta:
        return self._held.forget(source, cells)

    def apply(self, delta: Delta) -> None:
        self._held = create_memory("latent", self._channels, self._grid)
        self._held.apply(delta)

    def read(self, cameras: Cameras, mode: ReadMode = "soft") -> Readout:
        return self._held.read(cameras, mode)

    def stats(self) -> MemoryStats:
        return self._held.stats()

    def state(self) -> dict[str, Tensor]:
        return self._held.state()


class UnfusedMemory:
    """A latent memory that adds every observed cell, seen before or not, and gives up none.

    Generated frames still fill only what is uncovered.
    """

    def __init__(self, channels: int, grid: tuple[int, int]) -> None:
        self._channels, self._grid = channels, grid
        self._held: Memory = create_memory("latent", channels, grid)
        self._num_frames = 0

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
        every = []
        for i, number in enumerate(source):
            one = slice(i, i + 1)
            trust = None if confidence is None else confidence[one]
            hidden = None if mask is None else mask[one]
            frame = (tokens[one], depth[one], cameras[one], number, trust, hidden, observed)
            every.append(self._one(*frame))
        return merged(every)[0]

    def _one(
        self,
        tokens: Tensor,  # (1, C, h, w)
        depth: Tensor,  # (1, h, w), or of the picture's size if observed
        camera: Cameras,  # (1,)
        number: int,
        confidence: Tensor | None,
        mask: Tensor | None,
        observed: bool,
    ) -> Delta:
        """What is new in a frame is measured against an empty memory."""
        if not observed:
            known = self.read(camera, "nearest").coverage
            if mask is not None:
                size = mask.shape[-2:]
                known = F.interpolate(known[None], size=size)[0] + mask.float()
            mask = known > 0
        alone = create_memory("latent", self._channels, self._grid)
        delta = alone.write(tokens, depth, camera, [number], confidence, mask, observed)
        shift = self._num_frames * self._grid[0] * self._grid[1]
        delta = replace(delta, ids=delta.ids + shift, serials=delta.serials + self._num_frames)
        self.apply(delta)
        return delta

    def forget(self, source: Sequence[int], cells: Tensor | None = None) -> Delta:
        return self._held.forget(source, cells)

    def apply(self, delta: Delta) -> None:
        self._held.apply(delta)
        self._num_frames += len(delta.serials)

    def read(self, cameras: Cameras, mode: ReadMode = "soft") -> Readout:
        return self._held.read(cameras, mode)

    def stats(self) -> MemoryStats:
        return self._held.stats()

    def state(self) -> dict[str, Tensor]:
        return self._held.state()


BASELINES: dict[str, Callable[[int, tuple[int, int]], Memory]] = {
    "last-frame": LastFrameMemory,
    "no-fusion": UnfusedMemory,
}
