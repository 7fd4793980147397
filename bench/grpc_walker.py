"""A gRPC client as light as can be: the Stream call in HTTP/2 frames.

What a gRPC library does on top costs more than all else that a walker does, on the very cores that
are measured. Nothing is left out that the server would notice, but for flow control: the windows
are so large that no run fills them.
"""

from __future__ import annotations

import asyncio
from typing import cast

from hpack import Encoder
from hyperframe.frame import (
    DataFrame,
    Frame,
    HeadersFrame,
    PingFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from bench.walkers import Clock, Run, hear, pose_message
from service.wire import world_pb2 as pb

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
CALL = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/mirage.v1.World/Stream"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
]
STREAM_ID = 1  # the connection has no other
DEFAULT_WINDOW, MAX_WINDOW = 2**16 - 1, 2**31 - 1
FRAME_HEAD_BYTES, MESSAGE_HEAD_BYTES = 9, 5
GREETING_S = 30.0


class GrpcWalker(asyncio.Protocol):
    def __init__(self, run: Run, authority: str, session: str) -> None:
        self._clock, self._authority = Clock(run), authority
        self._opening = pb.ClientMessage(open=pb.Open(protocol=1, session=session))
        self._received, self._messages = bytearray(), bytearray()
        self._transport: asyncio.Transport | None = None
        self._greeted, self._closed = asyncio.Event(), asyncio.Event()

    async def greeted(self) -> None:
        """Until the server has said hello."""
        async with asyncio.timeout(GREETING_S):
            await self._greeted.wait()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(PREFACE)
        self._send(SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: MAX_WINDOW}))
        self._send(WindowUpdateFrame(0, MAX_WINDOW - DEFAULT_WINDOW))
        headers = Encoder().encode([*CALL[:3], (":authority", self._authority), *CALL[3:]])
        self._send(HeadersFrame(STREAM_ID, headers, flags=["END_HEADERS"]))
        self._write(self._opening)

    def connection_lost(self, error: Exception | None) -> None:
        self._closed.set()

    def data_received(self, data: bytes) -> None:
        received = self._received
        received += data
        while len(received) >= FRAME_HEAD_BYTES:
            frame, size = Frame.parse_frame_header(memoryview(bytes(received[:FRAME_HEAD_BYTES])))
            end = FRAME_HEAD_BYTES + size
            if len(received) < end:
                return
            frame.parse_body(memoryview(bytes(received[FRAME_HEAD_BYTES:end])))
            del received[:end]
            self._take(frame)

    def send(self, sequence: int, late_s: float) -> None:
        self._clock.sends(sequence, late_s)
        self._write(pose_message(sequence))

    async def close(self) -> None:
        assert self._transport is not None
        self._transport.close()
        await self._closed.wait()

    def _take(self, frame: Frame) -> None:
        if isinstance(frame, DataFrame):
            self._messages += frame.data
            self._hear_all()
        elif isinstance(frame, PingFrame) and "ACK" not in frame.flags:
            self._send(PingFrame(0, frame.opaque_data, flags=["ACK"]))
        elif isinstance(frame, SettingsFrame) and "ACK" not in frame.flags:
            self._send(SettingsFrame(0, flags=["ACK"]))
        elif "END_STREAM" in frame.flags:
            self._clock.fails("the server ended the call")

    def _hear_all(self) -> None:
        """Each message comes behind a byte about compression and four that say its length."""
        messages = self._messages
        while len(messages) >= MESSAGE_HEAD_BYTES:
            end = MESSAGE_HEAD_BYTES + int.from_bytes(messages[1:MESSAGE_HEAD_BYTES], "big")
            if len(messages) < end:
                return
            message = pb.ServerMessage.FromString(bytes(messages[MESSAGE_HEAD_BYTES:end]))
            del messages[:end]
            self._greeted.set()
            hear(self._clock, message)

    def _write(self, message: pb.ClientMessage) -> None:
        data = message.SerializeToString()
        self._send(DataFrame(STREAM_ID, b"\0" + len(data).to_bytes(4, "big") + data))

    def _send(self, frame: Frame) -> None:
        assert self._transport is not None
        self._transport.write(frame.serialize())


async def connect_grpc(address: str, session: str, run: Run) -> GrpcWalker:
    """On a connection of its own, as another machine would have."""
    host, _, port = address.rpartition(":")
    _, walker = await asyncio.get_running_loop().create_connection(
        lambda: GrpcWalker(run, address, session), host, int(port)
    )
    await walker.greeted()
    return walker
