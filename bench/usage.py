"""What processes cost: CPU seconds by /proc (Linux), and the bytes that Valkey moved."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from redis.asyncio import Redis

TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """User and system time of a process, all of its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK_S


def resident_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def cpu_of_all(pids: dict[str, int]) -> dict[str, float]:
    return {name: cpu_s(pid) for name, pid in pids.items()}


async def profile(
    pids: dict[str, int], duration_s: float, folder: Path | None
) -> list[asyncio.subprocess.Process]:
    """py-spy on each Python process, if there is a folder: `<name>.raw`, one stack a line."""
    if folder is None:
        return []
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
    return [
        await asyncio.create_subprocess_exec(
            *("py-spy", "record", "--gil", "--nonblocking", "--format", "raw", "--rate", "100"),
            *("--pid", str(pid)),
            *("--duration", str(int(duration_s)), "--output", str(folder / f"{name}.raw")),
            stdout=asyncio.subprocess.DEVNULL,
        )
        for name, pid in pids.items()
        if name not in ("client", "valkey")
    ]


async def redis_counters(redis: Redis) -> dict[str, int]:
    """Commands, and bytes in and out, since the server started."""
    stats = await redis.info("stats")
    return {
        "commands": stats["total_commands_processed"],
        "in_bytes": stats["total_net_input_bytes"],
        "out_bytes": stats["total_net_output_bytes"],
    }
