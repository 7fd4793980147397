"""A thread with an event loop of its own, so that the sync SDK is the async one, waited for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any, TypeVar

from service.tasks import end

T = TypeVar("T")


class Portal:
    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="mirage", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for it in this thread; Ctrl-C here cancels it there."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        finally:
            future.cancel()

    def iterate(self, items: AsyncIterator[T]) -> Iterator[T]:
        """An async iterator as a plain one; leaving early closes it."""
        ended = object()

        async def following() -> T | object:
            return await anext(items, ended)

        async def close() -> None:
            if (closing := getattr(items, "aclose", None)) is not None:
                await closing()

        try:
            while (item := self.run(following())) is not ended:
                yield item  # type: ignore[misc]  # a T, since it is not `ended`
        finally:
            self.run(close())

    def close(self) -> None:
        """End what still runs, and the thread."""
        self.run(_end_all())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _end_all() -> None:
    await end([task for task in asyncio.all_tasks() if task is not asyncio.current_task()])
    await asyncio.get_running_loop().shutdown_asyncgens()
    await asyncio.get_running_loop().shutdown_default_executor()
