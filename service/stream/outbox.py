"""What waits to be sent: a short queue that several tasks fill and the transport empties.

Short on purpose: a client that reads slowly makes the writers wait, so that a stream's memory is
bounded whatever its client does.
"""

from __future__ import annotations

import asyncio
from collections import deque

from service.wire import world_pb2 as pb


class Outbox:
    def __init__(self, length: int) -> None:
        self._length = length
        self._messages: deque[pb.ServerMessage] = deque()
        self._filled, self._room = asyncio.Event(), asyncio.Event()
        self._closed = False

    def __len__(self) -> int:
        return len(self._messages)

    async def put(self, message: pb.ServerMessage) -> None:
        """Wait for room, then add; once it is closed, for ever."""
        while self._closed or len(self._messages) >= self._length:
            self._room.clear()
            await self._room.wait()
        self._messages.append(message)
        self._filled.set()

    async def get(self) -> pb.ServerMessage | None:
        """The next message; None once it is closed and empty."""
        while not self._messages:
            if self._closed:
                return None
            self._filled.clear()
            await self._filled.wait()
        self._room.set()
        return self._messages.popleft()

    def close(self) -> None:
        """Nothing more is taken or awaited; what lies here is still handed out."""
        self._closed = True
        self._filled.set()
