"""Work shared out among threads: kernels run without the interpreter's lock."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from worker.splat.columns import Array

Items = TypeVar("Items", Array, range)

_pool: ThreadPoolExecutor | None = None


def split(items: Items, least: int, threads: int) -> list[Items]:
    """Contiguous parts, at most one per thread, of at least `least` items."""
    num = max(1, min(threads, len(items) // least))
    return [items[len(items) * i // num : len(items) * (i + 1) // num] for i in range(num)]


def each(task: Callable[[int], None], num: int) -> None:
    """task(0) .. task(num - 1), side by side."""
    global _pool
    if num == 1:
        return task(0)
    if _pool is None:
        _pool = ThreadPoolExecutor(os.cpu_count(), "kernels")
    others = [_pool.submit(task, i) for i in range(1, num)]
    task(0)
    for other in others:
        other.result()
    return None
