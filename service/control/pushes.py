"""What Redis pushes to one process: channels, over a connection of their own.

What has arrived together is returned together. Nothing is kept for who is not there: what was
pushed while the connection was down is lost, and `next` says that it may have been.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from redis.asyncio import Redis

from service.control.replies import arrived


class Push(NamedTuple):
    channel: str
    data: bytes


async def _as_it_is(response: Any) -> Any:
    return response


class Pushes:
    def __init__(self, redis: Redis) -> None:
        # redis-py's types mix its sync and async answers; its own handler of pushes writes each of
        # them, pictures and all, into a log that nobody reads
        self._pubsub: Any = redis.pubsub(push_handler_func=_as_it_is)

    async def subscribe(self, channel: str) -> None:
        await self._pubsub.subscribe(channel)

    async def unsubscribe(self, channel: str) -> None:
        await self._pubsub.unsubscribe(channel)

    async def next(self) -> list[Push | None]:
        """What has been pushed, at least one; None among them: a subscription began or ended, also
        on a new connection, so that something may have been lost. Raises RedisError, OSError.
        """
        first = await self._pubsub.parse_response()
        return [await self._read(one) for one in (first, *arrived(self._pubsub.connection))]

    async def _read(self, response: Any) -> Push | None:
        if response and response[0] == b"message":
            return Push(response[1].decode(), response[2])
        await self._pubsub.handle_message(response)
        return None

    async def close(self) -> None:
        await self._pubsub.aclose()
