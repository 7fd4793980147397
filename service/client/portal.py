"""A thread with an event loop of its own, so that the sync SDK is the async one, waited for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import CancelledError
from contextlib import suppress
from typing import Any, TypeVar

from service.tasks import end

T = TypeVar("T")


class PortalClosed(RuntimeError):
    """The portal was closed, meanwhile or before."""

    def __init__(self) -> None:
        super().__init__("This Mirage is closed, with all that came of it; open another one.")


class Portal:
    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._closing, self._is_closed = threading.Lock(), False
        self._thread = threading.Thread(target=self._loop.run_forever, name="mirage", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for it in this thread; Ctrl-C here cancels it there. Raises PortalClosed."""
        with self._closing:  # what is begun before the end is ended with all else, not left over
            if self._is_closed:
                work.close()
                raise PortalClosed
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except CancelledError:
            raise PortalClosed from None
        finally:
            future.cancel()

    def iterate(self, items: AsyncIterator[T]) -> Iterator[T]:
        """An async iterator as a plain one; leaving early closes it. Raises PortalClosed."""
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
            with suppress(PortalClosed):
                self.run(close())

    def close(self) -> None:
        """End what still runs, and the thread; once."""
        with self._closing:
            if self._is_closed:
                return
            self._is_closed = True
            ended = asyncio.run_coroutine_threadsafe(_end_all(), self._loop)
        ended.result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _end_all() -> None:
    await end([task for task in asyncio.all_tasks() if task is not asyncio.current_task()])
    await asyncio.get_running_loop().shutdown_asyncgens()
    await asyncio.get_running_loop().shutdown_default_executor()
