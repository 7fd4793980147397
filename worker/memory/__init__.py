"""Memories by name, imported when asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from worker.geometry import Cameras
from worker.memory.base import Delta, Memory, MemoryStats, ReadMode, Readout

if TYPE_CHECKING:
    from worker.memory.latent import LatentMemoryConfig
    from worker.memory.rgb import PixelCodec

__all__ = [
    "MEMORIES",
    "Delta",
    "Memory",
    "MemoryStats",
    "ReadMode",
    "Readout",
    "create_memory",
    "read_many",
]

MEMORIES = ("latent", "null", "rgb")


def create_memory(
    name: str,
    channels: int,
    grid: tuple[int, int],  # h, w in latent cells
    device: str = "cpu",
    cfg: LatentMemoryConfig | None = None,  # of `latent` and `rgb`
    codec: PixelCodec | None = None,  # of `rgb`
) -> Memory:
    """An empty memory; `name` is one of MEMORIES."""
    if name == "null":
        from worker.memory.null import NullMemory

        return NullMemory(channels, grid, device)
    if name == "latent":
        from worker.memory.latent import LatentMemory, LatentMemoryConfig

        return LatentMemory(channels, grid, device, cfg or LatentMemoryConfig())
    if name == "rgb":
        from worker.memory.rgb import RgbMemory

        if codec is None:
            raise ValueError("an rgb memory encodes what it shows: create it with a codec")
        return RgbMemory(channels, grid, device, codec, cfg)
    raise ValueError(f"unknown memory {name!r}; choose one of {', '.join(MEMORIES)}")


def read_many(
    memories: Sequence[Memory], cameras: Sequence[Cameras], mode: ReadMode = "soft"
) -> list[Readout]:
    """One readout per session; the sessions may differ in size and in number of cameras."""
    from worker.memory.latent import read_together

    together = read_together(memories, cameras, mode) if len(memories) > 1 else None
    if together is not None:
        return together
    return [memory.read(views, mode) for memory, views in zip(memories, cameras, strict=True)]
