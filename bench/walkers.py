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

from service.wire import world_pb2 as pb

BINARY = {"Sec-WebSocket-Protocol": "mirage.v1.proto"}


@dataclass
class Tally:
    """What one run's walkers saw inside the measured window."""

    sent: int = 0
    latencies_ms: list[float] = field(default_factory=list)
    late_ms: list[float] = field(default_factory=list)
    image_bytes: int = 0
    unordered: int = 0  # frames whose number did not follow the one before
    errors: list[str] = field(default_factory=list)


class Clock:
    """One walker's poses under way; what comes back within the window goes into the tally."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._sent_s: dict[int, float] = {}
        self._frame: int | None = None

    def sends(self, sequence: int, late_s: float) -> None:
        tally = self._run.tally
        if tally is not None:
            tally.sent += 1
            tally.late_ms.append(1e3 * late_s)
        self._sent_s[sequence] = time.perf_counter()

    def sees(self, frame: int, sequence: int | None, num_bytes: int) -> None:
        sent_s = None if sequence is None else self._sent_s.pop(sequence, None)
        follows = self._frame is None or frame == self._frame + 1
        self._frame, tally = frame, self._run.tally
        if tally is not None and sent_s is not None:
            tally.latencies_ms.append(1e3 * (time.perf_counter() - sent_s))
            tally.image_bytes += num_bytes
            tally.unordered += not follows

    def fails(self, detail: str) -> None:
        if self._run.tally is not None:
            self._run.tally.errors.append(detail)


@dataclass
class Run:
    """Shared by the walkers of one run; without a tally they warm up, or it is over."""

    tally: Tally | None = None


class Walker(Protocol):
    def send(self, sequence: int, late_s: float) -> None: ...

    async def close(self) -> None: ...


class Head(msgspec.Struct):
    """What a walker reads of a message's JSON head."""

    type: str
    frame: int = 0
    sequence: int | None = None
    detail: str = ""


HEADS = msgspec.json.Decoder(Head)


class WebSocketWalker(WSListener):
    """Protobuf both ways, or JSON poses out and a JSON head and a picture back."""

    def __init__(self, run: Run, binary: bool) -> None:
        self._clock, self._binary = Clock(run), binary
        self._head: Head | None = None
        self._transport: WSTransport | None = None
        self._closed = asyncio.Event()

    def on_ws_connected(self, transport: WSTransport) -> None:
        self._transport = transport

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self._closed.set()

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.TEXT:
            self._head = head = HEADS.decode(frame.get_payload_as_memoryview())
            if head.type == "error":
                self._clock.fails(head.detail)
        elif frame.msg_type == WSMsgType.BINARY and self._binary:
            hear(self._clock, pb.ServerMessage.FromString(frame.get_payload_as_bytes()))
        elif frame.msg_type == WSMsgType.BINARY and self._head is not None:
            size = len(frame.get_payload_as_memoryview())
            self._clock.sees(self._head.frame, self._head.sequence, size)

    def send(self, sequence: int, late_s: float) -> None:
        assert self._transport is not None
        self._clock.sends(sequence, late_s)
        if self._binary:
            self._transport.send(WSMsgType.BINARY, pose_message(sequence).SerializeToString())
        else:
            self._transport.send(WSMsgType.TEXT, pose_text(sequence))

    async def close(self) -> None:
        assert self._transport is not None
        self._transport.send_close()
        self._transport.disconnect()
        await self._closed.wait()


def hear(clock: Clock, message: pb.ServerMessage) -> None:
    if message.HasField("frame"):
        frame = message.frame
        sequence = frame.sequence if frame.HasField("sequence") else None
        clock.sees(frame.frame, sequence, len(frame.image))
    elif message.HasField("error"):
        clock.fails(message.error.detail)


def pose_of(sequence: int) -> list[float]:
    """A camera that sways along its optical axis."""
    return [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0.001 * (sequence % 1000), 0, 0, 0, 1]


def pose_text(sequence: int) -> bytes:
    values = ",".join(map(str, pose_of(sequence))).encode()
    return b'{"type":"pose","matrix":[%s],"sequence":%d,"client_time_ms":%.3f}' % (
        values,
        sequence,
        1e3 * time.time(),
    )


def pose_message(sequence: int) -> pb.ClientMessage:
    """Written in place: a message that is put into another is copied."""
    message = pb.ClientMessage(sequence=sequence)
    message.pose.pose.matrix.extend(pose_of(sequence))
    message.pose.client_time_ms = 1e3 * time.time()
    return message


async def connect_websocket(url: str, run: Run, binary: bool) -> WebSocketWalker:
    _, walker = await ws_connect(
        lambda: WebSocketWalker(run, binary),
        url,
        enable_auto_pong=True,
        extra_headers=BINARY if binary else None,
    )
    assert isinstance(walker, WebSocketWalker)
    return walker


async def walk(walkers: list[Walker], rate_hz: float, duration_s: float) -> None:
    """All walkers at `rate_hz` each, their moments spread evenly."""
    period_s = 1.0 / (rate_hz * len(walkers))
    started_s = time.perf_counter()
    for number in range(int(duration_s / period_s)):
        due_s = started_s + number * period_s
        ahead_s = due_s - time.perf_counter()
        if ahead_s > 0:
            await asyncio.sleep(ahead_s)
        sequence, walker = divmod(number, len(walkers))
        walkers[walker].send(sequence, max(0.0, time.perf_counter() - due_s))
