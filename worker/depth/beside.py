"""Pictures shared out among threads: each is worked on by one, which is faster than all threads at
each of the hundreds of small pieces that the work on a picture consists of.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from threading import Barrier
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")

CPU = torch.device("cpu")


def side_by_side(task: Callable[[T], R], items: Sequence[T], device: torch.device = CPU) -> list[R]:
    """What the task makes of each item, on as many threads as torch has in this one; work on a GPU
    is handed over in turn.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1 or len(items) < 2:
        return [task(item) for item in items]
    inference = torch.is_inference_mode_enabled()

    def run(item: T) -> R:
        with torch.inference_mode(inference), torch.no_grad():  # modes are each thread's own
            return task(item)

    return list(_pool(threads).map(run, items))


@lru_cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Of threads in which torch has one; what it has elsewhere stays."""
    started = Barrier(threads + 1)

    def start() -> None:
        torch.set_num_threads(1)
        torch.get_num_threads()  # asked for the first time, a thread takes what was set last
        started.wait()

    pool = ThreadPoolExecutor(threads, "pictures")
    for _ in range(threads):
        pool.submit(start)
    started.wait()
    torch.set_num_threads(threads)
    return pool
