"""What the owner of a session hears of a request: that there is one, and of a live pose all that it
would otherwise ask for.

A request is pushed to its owner's inbox by the script that appends it. Requests of a session are
counted: who sees a gap, or cannot use what it heard, reads the log.
"""

from __future__ import annotations

from typing import NamedTuple

import structlog
from redis.asyncio import Redis

from service.control import keys
from service.control.pushes import Pushes
from service.control.requests import Entry, LivePose

LOG = structlog.get_logger()


class News(NamedTuple):
    session: str
    asked: int  # requests that were ever asked of it, this one included
    entry: Entry | None = None  # of a live pose
    replaced: str = ""  # the entry that it took the place of


class Inbox:
    """One worker's, while it listens."""

    def __init__(self, redis: Redis, worker_id: str) -> None:
        self._pushes, self._channel = Pushes(redis), keys.inbox(worker_id)

    async def open(self) -> None:
        """From now on; raises RedisError, OSError."""
        await self._pushes.subscribe(self._channel)

    async def listen(self) -> list[News | None]:
        """News, in order; None among them: some may have been lost. Raises RedisError, OSError."""
        return [one and _read(one.data) for one in await self._pushes.next()]

    async def close(self) -> None:
        await self._pushes.close()


def _read(data: bytes) -> News | None:
    """None for what can't be read here, as a newer gateway's may be: the log says more."""
    try:
        return parse(data)
    except ValueError as error:
        LOG.warning("news not readable", error=str(error))
        return None


def parse(data: bytes) -> News:
    """As append.lua writes it: lines, the last of which is the message as JSON."""
    session, asked, *live = data.decode().split("\n", 5)
    if len(live) < 4:
        return News(session, int(asked))
    entry, replaced, request_id, body = live
    message = LivePose.model_validate_json(body)
    return News(session, int(asked), Entry(entry, request_id, message), replaced)
