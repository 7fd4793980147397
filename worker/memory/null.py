"""The memory that remembers nothing: proof of the contract, and the ablation for every result."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from worker.geometry import Cameras
from worker.memory.base import Delta, MemoryStats, ReadMode, Readout, empty_delta, empty_readout


class NullMemory:
    """Covers nothing, whatever was written."""

    def __init__(self, channels: int, grid: tuple[int, int], device: str = "cpu") -> None:
        self._channels, self._grid, self._device = channels, grid, device

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
        return empty_delta(self._channels, self._device)

    def forget(self, source: Sequence[int], cells: Tensor | None = None) -> Delta:
        return empty_delta(self._channels, self._device)

    def apply(self, delta: Delta) -> None:
        if len(delta.ids):
            raise ValueError(
                f"a null memory holds no points, the delta adds {len(delta.ids)}; "
                "restore this world with the memory that wrote it"
            )

    def read(self, cameras: Cameras, mode: ReadMode = "soft") -> Readout:
        return empty_readout(len(cameras), self._channels, self._grid, self._device, mode)

    def stats(self) -> MemoryStats:
        return MemoryStats(num_points=0, num_bytes=0, num_sources=0)

    def state(self) -> dict[str, Tensor]:
        return {}
