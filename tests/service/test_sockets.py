"""The short way of small WebSocket messages ends where uvicorn's own does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import uvicorn
from hypothesis import example, given
from hypothesis import strategies as st
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets.client import ClientProtocol
from websockets.exceptions import WebSocketException
from websockets.frames import Frame, Opcode
from websockets.uri import parse_uri

from service.sockets import StreamProtocol, header

MOST = 300  # bytes of a message


class Wire(asyncio.Transport):
    """What was written; it never has to wait."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed = self.paused = False

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default


class Seen(NamedTuple):
    events: list[Any]
    written: bytes
    closed: bool


def whole(text: bool, payload: bytes) -> bytes:
    opcode = Opcode.TEXT if text else Opcode.BINARY
    return Frame(opcode, payload).serialize(mask=True)


async def _accepts(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.Event().wait()


async def _opened(kind: type[WebSocketsSansIOProtocol]) -> tuple[WebSocketsSansIOProtocol, Wire]:
    config = uvicorn.Config(_accepts, ws_max_size=MOST, ws_ping_interval=None, log_config=None)
    config.load()
    protocol, wire = kind(config, ServerState(), {}), Wire()
    protocol.connection_made(wire)
    client = ClientProtocol(parse_uri("ws://inside/"))
    client.send_request(client.connect())
    protocol.data_received(b"".join(client.data_to_send()))
    while not protocol.handshake_complete:  # noqa: ASYNC110 - uvicorn has a flag, no event
        await asyncio.sleep(0)
    wire.written = b""
    return protocol, wire


async def _seen(
    kind: type[WebSocketsSansIOProtocol], chunks: Sequence[bytes], answers: Sequence[bytes]
) -> Seen:
    protocol, wire = await _opened(kind)
    try:
        for chunk in chunks:
            if not wire.closed:
                protocol.data_received(chunk)
        for answer in answers:
            await protocol.send(cast(Any, {"type": "websocket.send", "bytes": answer}))
    except (WebSocketException, OSError, RuntimeError) as error:
        wire.written += repr(error).encode()
    events = []
    while not protocol.queue.empty():
        events.append(protocol.queue.get_nowait())
    for task in protocol.tasks:
        task.cancel()
    return Seen(events, wire.written, wire.closed)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = [*sorted({place for place in places if 0 < place < len(data)}), len(data)]
    return [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def frames(opcode: Opcode, payload: bytes, fin: bool, masked: bool) -> bytes:
    return Frame(opcode, payload, fin or opcode >= Opcode.CLOSE).serialize(mask=masked)


PAYLOADS = st.binary(max_size=20) | st.binary(min_size=120, max_size=MOST + 5)
MESSAGES = st.builds(whole, st.booleans(), PAYLOADS)
OTHERS = st.builds(
    frames, st.sampled_from(list(Opcode)), st.binary(max_size=60), st.booleans(), st.booleans()
)
CHUNKS = st.lists(MESSAGES | MESSAGES | OTHERS | st.binary(max_size=12), max_size=8).flatmap(
    lambda parts: (
        st.just(parts)
        | st.lists(st.integers(0, 600), max_size=5).map(lambda at: cut(b"".join(parts), at))
    )
)
ANSWERS = st.lists(st.binary(max_size=130) | st.just(bytes(70_000)), max_size=3)


@given(CHUNKS, ANSWERS)
@example([whole(False, b"pose"), whole(True, b"{}"), whole(False, bytes(200))], [b"frame"])
@example([whole(True, b"\xff")], [b"frame"])
@example([frames(Opcode.BINARY, b"a", False, True), whole(False, b"b")], [b"frame"])
@example([frames(Opcode.PING, b"a", True, True), whole(False, b"b")], [b"frame"])
@example([frames(Opcode.CLOSE, b"\x03\xe8", True, True), whole(False, b"b")], [b"frame"])
def test_both_ways_agree(chunks: list[bytes], answers: list[bytes]) -> None:
    async def both() -> tuple[Seen, Seen]:
        ways = [_seen(kind, chunks, answers) for kind in (StreamProtocol, WebSocketsSansIOProtocol)]
        return await ways[0], await ways[1]

    ours, theirs = asyncio.run(both())
    assert ours == theirs


def test_headers_are_those_of_the_library() -> None:
    for size in (0, 125, 126, 65_535, 65_536):
        data = bytes(size)
        assert header(size) + data == Frame(Opcode.BINARY, data).serialize(mask=False)


def test_who_is_not_read_is_not_listened_to_for_ever() -> None:
    async def paused_after(count: int) -> bool:
        protocol, wire = await _opened(StreamProtocol)
        for _ in range(count):
            protocol.data_received(whole(False, b"pose"))
        was_paused = wire.paused
        for _ in range(count):
            await protocol.receive()
        assert not wire.paused
        for task in protocol.tasks:
            task.cancel()
        return was_paused

    assert not asyncio.run(paused_after(1))
    assert asyncio.run(paused_after(4))
