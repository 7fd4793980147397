"""How our processes run: an event loop in C where there is one, and few, short collections.

A gateway or a worker that has started holds hundreds of thousands of objects that live as long as
it does (modules, schemas, torch). The collector would walk through all of them again and again, and
everybody waits meanwhile: once they are frozen it looks at what came later only. Trade-off: cycles
made before that, and never freed, stay.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

YOUNG_OBJECTS = 10_000  # between collections; the default, 700, is a few frames' worth


def run(main: Coroutine[Any, Any, T]) -> T:
    """asyncio.run, on uvloop but for Windows, which it does not support."""
    if sys.platform == "win32":
        return asyncio.run(main)
    import uvloop

    return uvloop.run(main)


def settle_heap() -> None:
    """To be called once, when everything that stays has been made."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, 10, 10)
