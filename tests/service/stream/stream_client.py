"""A client of the generator behind every streaming transport."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import numpy as np

from service.auth.principal import LOCAL, Principal
from service.errors import InvalidRequest
from service.gateway import Gateway
from service.poses import flat
from service.stream.answers import as_text
from service.stream.conversation import converse
from service.stream.messages import CLIENT_MESSAGE, Incoming, OpenMessage
from service.wire import world_pb2 as pb

IDENTITY = flat(np.eye(4))


class Got(NamedTuple):
    head: dict[str, Any]
    body: bytes


class Client:
    """What a transport does: hands messages in, takes messages out."""

    def __init__(
        self,
        gateway: Gateway,
        session: str,
        after: int | None = None,
        principal: Principal = LOCAL,
        **options: Any,
    ) -> None:
        self._in: asyncio.Queue[Incoming | None] = asyncio.Queue()
        opening = OpenMessage(session=session, after=after, **options)
        self._out = converse(gateway, principal, opening, self._incoming())

    async def _incoming(self) -> AsyncIterator[Incoming]:
        while (message := await self._in.get()) is not None:
            yield message

    def send(self, **message: Any) -> None:
        self._in.put_nowait(CLIENT_MESSAGE.validate_python(message))

    def fail(self, error: InvalidRequest) -> None:
        self._in.put_nowait(error)

    def leave(self) -> None:
        self._in.put_nowait(None)

    async def get(self, kind: str) -> Got:
        """The next message of this kind; others on the way are dropped."""
        async with asyncio.timeout(60):
            async for message in self._out:
                if message.WhichOneof("message") == kind:
                    return Got(as_text(message, "s"), message.frame.image)
        raise AssertionError(f"the stream ended without a {kind}")

    async def rest(self, pause_s: float = 0.0) -> list[pb.ServerMessage]:
        """All that still comes; with a pause after each, as to a slow client."""
        said = []
        async with asyncio.timeout(60):
            async for message in self._out:
                said.append(message)
                await asyncio.sleep(pause_s)
        return said

    async def close(self) -> None:
        await self._out.aclose()
