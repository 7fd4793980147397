"""Asyncio tasks that end for certain."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Coroutine
from contextlib import asynccontextmanager
from typing import Any


async def end(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Cancel until they are gone, whatever they end with.

    Before Python 3.12 `asyncio.wait_for`, which the Redis client uses for every command, may
    swallow a cancellation (gh-86296), so once is not enough.
    """
    pending = {task for task in tasks if not task.done()}
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=0.1)
    await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def beside(work: Coroutine[Any, Any, Any]) -> AsyncIterator[None]:
    """`work` goes on inside the block; what it ends with is nobody's concern."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        await end([task])
