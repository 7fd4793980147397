"""A stream opened over a WebSocket."""

from __future__ import annotations

import json

import pytest
import websockets
from websockets.exceptions import ConnectionClosed


async def first_word(url: str, **headers: str) -> dict[str, object]:
    """The first message; a close code if there is no other."""
    async with websockets.connect(url, additional_headers=headers) as socket:
        message = dict(json.loads(await socket.recv()))
        if message["type"] == "error":
            with pytest.raises(ConnectionClosed) as closed:
                await socket.recv()
            assert closed.value.rcvd is not None
            message["code"] = closed.value.rcvd.code
        return message
