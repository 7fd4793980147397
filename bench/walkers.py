"""Clients as light as can be: many cameras that walk at a fixed rate and time their frames.

A walker sends pose n at its own moment, whatever has come back (an open loop: a slow server can't
slow the question), and notes how long the frame that echoes n took. `late_ms` is how far behind its
schedule the client itself was. Poses that a newer one replaced have no frame and count as lost.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Protocol

import msgspec
from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_connect


@dataclass
class Tally:
    """What one run's walkers saw inside the measured window."""

    sent: int = 0
    latencies_ms: list[float] = field(default_factory=list)
    late_ms: list[float] = field(default_factory=list)
    image_bytes: int = 0
    errors: list[str] = field(default_factory=list)


class Walker(Protocol):
    def send(self, sequence: int) -> None: ...

    async def close(self) -> None: ...


class Head(msgspec.Struct):
    """What a walker reads of a message's JSON head."""

    type: str
    sequence: int | None = None
    detail: str = ""


HEADS = msgspec.json.Decoder(Head)


class Clock:
    """Moments of poses sent, and what came back within the window of the tally."""

    def __init__(self) -> None:
        self.tally: Tally | None = None  # None: warming up or over
        self.order_broken = False

    def sent(self, late_s: float) -> float:
        if self.tally is not None:
            self.tally.sent += 1
            self.tally.late_ms.append(1e3 * late_s)
        return time.perf_counter()

    def seen(self, sent_s: float, num_bytes: int) -> None:
        if self.tally is not None:
            self.tally.latencies_ms.append(1e3 * (time.perf_counter() - sent_s))
            self.tally.image_bytes += num_bytes


class WebSocketWalker(WSListener):
    """JSON poses out; a JSON head and a binary picture back."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._sent_s: dict[int, float] = {}
        self._sequence: int | None = None
        self._transport: WSTransport | None = None
        self._closed = asyncio.Event()

    def on_ws_connected(self, transport: WSTransport) -> None:
        self._transport = transport

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self._closed.set()

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.TEXT:
            head = HEADS.decode(frame.get_payload_as_memoryview())
            self._sequence = head.sequence if head.type == "frame" else None
            if head.type == "error" and self._clock.tally is not None:
                self._clock.tally.errors.append(head.detail)
        elif frame.msg_type == WSMsgType.BINARY and self._sequence in self._sent_s:
            self._clock.seen(
                self._sent_s.pop(self._sequence), len(frame.get_payload_as_memoryview())
            )

    def send(self, sequence: int, late_s: float) -> None:
        assert self._transport is not None
        self._sent_s[sequence] = self._clock.sent(late_s)
        self._transport.send(WSMsgType.TEXT, pose_text(sequence))

    async def close(self) -> None:
        assert self._transport is not None
        self._transport.send_close()
        self._transport.disconnect()
        await self._closed.wait()


def pose_text(sequence: int) -> bytes:
    """A camera that sways along its optical axis."""
    z_m = 0.001 * (sequence % 1000)
    return (
        b'{"type":"pose","matrix":[1,0,0,0,0,1,0,0,0,0,1,%.3f,0,0,0,1],"sequence":%d,'
        b'"client_time_ms":%.3f}' % (z_m, sequence, 1e3 * time.time())
    )


async def connect_websocket(url: str, clock: Clock) -> WebSocketWalker:
    _, walker = await ws_connect(lambda: WebSocketWalker(clock), url, enable_auto_pong=True)
    assert isinstance(walker, WebSocketWalker)
    return walker


async def walk(walkers: list[WebSocketWalker], rate_hz: float, duration_s: float) -> None:
    """All walkers at `rate_hz` each, their moments spread evenly."""
    period_s = 1.0 / (rate_hz * len(walkers))
    started_s = time.perf_counter()
    total = int(duration_s * rate_hz * len(walkers))
    for number in range(total):
        due_s = started_s + number * period_s
        ahead_s = due_s - time.perf_counter()
        if ahead_s > 0:
            await asyncio.sleep(ahead_s)
        sequence, walker = divmod(number, len(walkers))
        walkers[walker].send(sequence, max(0.0, time.perf_counter() - due_s))
