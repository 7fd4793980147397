"""Memories by name, imported when asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from worker.memory.base import Delta, Memory, MemoryStats, ReadMode, Readout, read_many

if TYPE_CHECKING:
    from worker.memory.latent import LatentMemoryConfig

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

MEMORIES = ("latent", "null")


def create_memory(
    name: str,
    channels: int,
    grid: tuple[int, int],  # h, w in latent cells
    device: str = "cpu",
    cfg: LatentMemoryConfig | None = None,  # of `latent`
) -> Memory:
    """An empty memory; `name` is one of MEMORIES."""
    if name == "null":
        from worker.memory.null import NullMemory

        return NullMemory(channels, grid, device)
    if name == "latent":
        from worker.memory.latent import LatentMemory, LatentMemoryConfig

        return LatentMemory(channels, grid, device, cfg or LatentMemoryConfig())
    raise ValueError(f"unknown memory {name!r}; choose one of {', '.join(MEMORIES)}")
