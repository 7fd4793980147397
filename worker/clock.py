"""Wall-clock time per stage of a step."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Clock:
    """Adds up milliseconds per stage; a stage ends when its device is done."""

    def __init__(self) -> None:
        self.timings_ms: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        spent_ms = 1e3 * (time.perf_counter() - started)
        self.timings_ms[stage] = self.timings_ms.get(stage, 0.0) + spent_ms
