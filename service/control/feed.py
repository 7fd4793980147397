"""New frames as they are committed, pushed to whoever watches a session.

One pub/sub connection per process carries all the sessions that somebody here watches: a commit
publishes its frames, a commit without any and a deletion an empty note. A push saves the question,
it is never the only source: frames are numbered, so what was lost on the way (a new connection, a
slow reader) is seen as a gap, or by asking now and then, and is read from the frame bus.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import Context

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from service.control import keys
from service.control.frames import Frame, FrameBus, parse_push
from service.control.pushes import Pushes
from service.tasks import end

LOG = structlog.get_logger()
KEPT = 32  # pushes that wait for a slow reader; what is more it reads from the bus
RETRY_S = 0.2

Ask = Callable[[int, int], Awaitable[list[Frame]]]  # (after, limit) -> frames on the bus


class Watch:
    """One reader of one session."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._pushed: deque[Frame] = deque()
        self._news = asyncio.Event()
        self._behind = True  # there may be frames on the bus that were not pushed
        self._branch: int | None = None  # of the last frame returned
        self._until_s = 0.0  # so long `_wait` waits
        self._timer: asyncio.TimerHandle | None = None

    def push(self, frame: Frame | None) -> None:
        """A frame, or None: something has changed, ask."""
        if frame is None or len(self._pushed) >= KEPT:
            self._behind = True
        else:
            self._pushed.append(frame)
        self._news.set()

    async def read(self, after: int, wait_s: float = 0.0, limit: int = 16) -> list[Frame]:
        """Up to `limit` consecutive frames after number `after`; waits up to `wait_s` for the next
        one. Nothing may also mean that something else has changed. Raises as FrameBus.read does.
        """
        if not self._pushed and not self._behind and wait_s > 0:
            await self._wait(wait_s)
        frames = self._take(after, limit)
        if frames or not self._behind:
            return frames
        self._behind = False  # from here on: what is pushed during the question counts
        frames = await self._ask(after, limit)
        if frames:
            self._branch = frames[-1].branch
            self._behind = self._behind or len(frames) == limit
        return frames

    async def _wait(self, wait_s: float) -> None:
        self._news.clear()
        loop = asyncio.get_running_loop()
        self._until_s = loop.time() + wait_s
        if self._timer is None or self._timer.when() > self._until_s:
            self._arm(loop)  # one timer for many waits: most end long before their time
        await self._news.wait()

    def _arm(self, loop: asyncio.AbstractEventLoop) -> None:
        self.close()
        self._timer = loop.call_at(self._until_s, self._tick, loop)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._until_s > loop.time():
            self._arm(loop)
        else:
            self._timer = None
            self._behind = True  # a push may have been lost
            self._news.set()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _take(self, after: int, limit: int) -> list[Frame]:
        """The pushed frames that continue where the reader is; if they do not, ask."""
        frames: list[Frame] = []
        while self._pushed and len(frames) < limit:
            first = self._pushed[0]
            if first.branch == self._branch and first.frame <= after:
                self._pushed.popleft()
            elif first.branch == self._branch and first.frame == after + 1:
                frames.append(self._pushed.popleft())
                after += 1
            else:  # a gap, or another branch: the bus has all of it
                self._pushed.clear()
                self._behind = True
        return frames


class Feed:
    """The watches of one process."""

    def __init__(self, redis: Redis, bus: FrameBus) -> None:
        self._pushes, self._bus = Pushes(redis), bus
        self._watches: dict[str, set[Watch]] = {}
        self._subscribed: set[str] = set()
        self._settling = asyncio.Lock()
        self._listening: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def watch(self, session: str) -> AsyncIterator[Watch]:
        """Frames of a session are pushed to the watch inside the block."""
        channel = keys.frames(session)  # channels have names of their own; the script has this one
        watch = Watch(lambda after, limit: self._bus.read(session, after, limit=limit))
        self._watches.setdefault(channel, set()).add(watch)
        try:
            await self._settle(channel)
            yield watch
        finally:
            watch.close()
            self._watches[channel].discard(watch)
            if not self._watches[channel]:
                del self._watches[channel]
            with contextlib.suppress(RedisError, OSError):
                await self._settle(channel)

    async def _settle(self, channel: str) -> None:
        """Subscribe or unsubscribe, as is wanted now: watches come and go meanwhile."""
        async with self._settling:
            wanted, has = channel in self._watches, channel in self._subscribed
            if wanted and not has:
                await self._pushes.subscribe(channel)
                self._subscribed.add(channel)
            elif has and not wanted:
                self._subscribed.discard(channel)
                await self._pushes.unsubscribe(channel)
            if self._listening is None:
                # for all: no log of it is about the request that happens to be the first
                self._listening = asyncio.create_task(self._listen(), context=Context())

    async def _listen(self) -> None:
        """Deliver for ever. The client subscribes again by itself after a lost connection."""
        while True:
            try:
                pushes = await self._pushes.next()
            except (RedisError, OSError) as error:
                LOG.warning("feed interrupted", error=str(error))
                for channel in self._watches:
                    self._deliver(channel, b"")
                await asyncio.sleep(RETRY_S)
                continue
            for push in pushes:
                if push is not None:
                    self._deliver(*push)

    def _deliver(self, channel: str, data: bytes) -> None:
        watches = self._watches.get(channel)
        if watches:
            frame = _read(channel, data)
            for watch in watches:
                watch.push(frame)

    async def close(self) -> None:
        if self._listening is not None:
            await end([self._listening])
        await self._pushes.close()


def _read(channel: str, data: bytes) -> Frame | None:
    """The frame that was pushed; None to ask the bus, whose answer or error one reader gets: what
    can't be read here, as a newer worker's may be, must not end what all sessions share.
    """
    try:
        return parse_push(data) if data else None
    except ValueError as error:
        LOG.warning("push not readable", channel=channel, error=str(error))
        return None
