"""uvicorn's WebSocket connection, with a short way for the messages of a stream.

Poses are small: each arrives as one whole frame, most of the time alone. Such frames are taken
apart here, and binary messages are sent with a header of their own, where websockets' parser and
ASGI's state machine cost ten times as much. Whatever else comes (fragments, pings, closing, what is
malformed) takes uvicorn's way, which also decides what is allowed. Trade-off: once a frame came in
pieces, that connection's messages take the long way for good, as only its parser knows where the
next one begins; and what is used here of uvicorn's class is no interface, so deploy/constraints.txt
fixes its version.
"""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import apply_mask  # type: ignore[attr-defined]
from websockets.protocol import State

TEXT, BINARY = 0x81, 0x82  # whole messages, nothing reserved
IS_WHOLE, IS_MASKED = 0x80, 0x80
TWO_BYTES, EIGHT_BYTES = 126, 127  # instead of a length: it follows
AHEAD = 4  # small messages that wait to be read; uvicorn stops reading at each


def whole_frames(data: bytes) -> list[tuple[int, bytes]] | None:
    """First byte and payload of each frame, where these are whole, masked and small ones and there
    is nothing else; else None.
    """
    frames, at, end = [], 0, len(data)
    while at < end:
        if end - at < 6:
            return None
        first, size, at = data[at], data[at + 1] - IS_MASKED, at + 2
        if size == TWO_BYTES:
            size, at = int.from_bytes(data[at : at + 2]), at + 2
        elif size < 0 or size == EIGHT_BYTES:
            return None
        stop = at + 4 + size
        if stop > end or first < IS_WHOLE:
            return None
        frames.append((first, apply_mask(data[at + 4 : stop], data[at : at + 4])))
        at = stop
    return frames


def header(size: int) -> bytes:
    """Of an unmasked binary message."""
    if size < TWO_BYTES:
        return bytes((BINARY, size))
    if size < 1 << 16:
        return bytes((BINARY, TWO_BYTES)) + size.to_bytes(2)
    return bytes((BINARY, EIGHT_BYTES)) + size.to_bytes(8)


class StreamProtocol(WebSocketsSansIOProtocol):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._is_between = True  # frames: the parser waits for the first byte of one

    def data_received(self, data: bytes) -> None:
        if not self.handshake_initiated:  # this is the request
            super().data_received(data)
            return
        frames = whole_frames(data) if self._is_between else None
        self._is_between = frames is not None
        events = self._events(frames) if frames and self.conn.state is State.OPEN else None
        if events is None:
            super().data_received(data)
            return
        for event in events:
            self.queue.put_nowait(event)
        if not self.read_paused and self.queue.qsize() >= AHEAD:
            self.read_paused = True
            self.transport.pause_reading()

    def _events(self, frames: list[tuple[int, bytes]]) -> list[Any] | None:
        """What ASGI calls these messages; None if something else is among them."""
        events: list[Any] = []
        for first, payload in frames:
            if first == BINARY and len(payload) <= self.config.ws_max_size:
                events.append({"type": "websocket.receive", "bytes": payload})
            elif first == TEXT and len(payload) <= self.config.ws_max_size:
                try:
                    events.append({"type": "websocket.receive", "text": payload.decode()})
                except UnicodeDecodeError:
                    return None
            else:
                return None
        return events

    async def send(self, message: Any) -> None:
        data = message.get("bytes")
        is_open = self.conn.state is State.OPEN and not (self.close_sent or self.disconnected)
        if data is None or not is_open or not self.writable.is_set():
            await super().send(message)
            return
        self.transport.write(header(len(data)) + data)
