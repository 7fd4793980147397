"""A live walk over the WebSocket, in protobuf; it reconnects where it broke off.

Poses are sent as often as one likes (the newest counts); frames are iterated over. When the
connection breaks or the gateway stops, the stream comes back with the number and branch of the last
frame it has handed out, so none is missed and none comes twice while the service still holds them,
and `rewound` says what somebody else has taken back meanwhile. What the
server decided (deleted, unknown, refused) is raised.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from contextlib import suppress
from typing import Any, Self
from urllib.parse import urlencode

import websockets
from numpy.typing import ArrayLike
from websockets.typing import Subprotocol

from service.client.frames import Frame, Pixels, ServiceError, frame_from
from service.convert import filled, plain
from service.limits import MAX_STREAM_MESSAGE_BYTES
from service.poses import flat_of
from service.wire import world_pb2 as pb

SUBPROTOCOL = Subprotocol("mirage.v1.proto")
SERVERS_DECISION = 4000  # close codes from here on
GIVE_UP_S = 30.0  # without a connection
PAUSES_S = (0.1, 0.3, 1.0, 2.0, 4.0)


class Stream:
    """Use it as an async context manager."""

    def __init__(
        self, url: str, headers: Mapping[str, str], after: int | None, options: Mapping[str, Any]
    ) -> None:
        """`url`: ws://.../stream; `options`: what `Open` of the contract has, as keywords."""
        self._url, self._headers = url, dict(headers)
        self._options = {name: _text(value) for name, value in options.items()}
        self.after = after  # the last frame handed out
        self.branch: int | None = None  # of that frame
        self.hello: dict[str, Any] = {}
        self.num_connections = 0
        self._socket: websockets.ClientConnection | None = None
        self._sequence = 0
        self._closed = False

    async def __aenter__(self) -> Self:
        await self._connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._closed = True
        if self._socket is not None:
            await self._socket.close()

    async def pose(self, pose: ArrayLike, **options: Any) -> int:
        """Be here now: (4, 4) world_from_camera; options: axes, camera, client_time_ms.

        Returns the number that the pose's frame will carry as `sequence`.
        """
        return await self._say("pose", {"pose": {"matrix": flat_of(pose)}, **options})

    async def input(self, **held: Any) -> int:
        """What is held down until the next call, as in input(keys=["w"], move_m_per_s=2)."""
        return await self._say("input", held)

    async def path(self, **path: Any) -> int:
        """As World.generate, but made no further ahead than it is played (`frames_per_s`)."""
        if "poses" in path:
            path["poses"] = [{"matrix": flat_of(pose)} for pose in path["poses"]]
        return await self._say("path", path)

    async def observe(self, pose: ArrayLike, image: bytes, **seen: Any) -> int:
        """What was really seen from a pose; options: depth, mask, fov_deg, intrinsics, scale_m.

        A picture that is too large for a stream's message is for `World.observe`.
        """
        return await self._say(
            "observe", {"pose": {"matrix": flat_of(pose)}, "image": image, **seen}
        )

    async def play(self, paused: bool | None = None, speed: float | None = None) -> int:
        return await self._say("play", {"paused": paused, "speed": speed})

    async def seek(self, frame: int) -> int:
        """Rewind: what comes after this frame is forgotten."""
        return await self._say("seek", {"frame": frame})

    async def fork(self, frame: int | None = None, seed: int | None = None) -> int:
        """A new world with this one's past; `forked` in messages() names it."""
        return await self._say("fork", {"frame": frame, "seed": seed})

    async def cancel(self, request: str) -> int:
        return await self._say("cancel", {"id": request})

    async def ping(self) -> int:
        return await self._say("ping", {"client_time_ms": 1000 * time.time()})

    async def messages(self) -> AsyncIterator[Frame | dict[str, Any]]:
        """Everything: frames as Frame, the rest as dictionaries with `type`; until closed."""
        while not self._closed:
            try:
                async for message in self._received():
                    yield message
            except websockets.ConnectionClosed as closed:
                if self._closed or _is_decision(closed):
                    return
            if not self._closed:
                await self._reconnect()

    async def frames(self) -> AsyncIterator[Frame]:
        """Only the frames; raises ServiceError when the server reports an error."""
        async for message in self.messages():
            if isinstance(message, Frame):
                yield message
            elif message["type"] == "error":
                raise ServiceError(message)

    async def walk(self, poses: AsyncIterable[ArrayLike]) -> AsyncIterator[Pixels]:
        """Live: the picture from each pose, (H, W, 3); the next pose is sent when it is there."""
        frames = self.frames()
        async for pose in poses:
            sequence = await self.pose(pose)
            async for frame in frames:
                if frame.sequence == sequence:
                    yield frame.pixels()
                    break

    async def _received(self) -> AsyncIterator[Frame | dict[str, Any]]:
        assert self._socket is not None
        async for data in self._socket:
            assert isinstance(data, bytes)
            message = pb.ServerMessage.FromString(data)
            kind = message.WhichOneof("message")
            if kind == "frame":
                self.after, self.branch = message.frame.frame, message.frame.branch
                yield frame_from(message.frame)
                continue
            said = plain(getattr(message, kind or "error"))
            if kind == "hello":
                self.hello = said
            elif kind == "rewound" and self.after is not None:
                self.after, self.branch = min(self.after, said["frame"]), said["branch"]
            elif kind == "error":
                said["problem"] = said["type"]
            yield {**said, "type": kind, "reply_to": message.reply_to}

    async def _say(self, kind: str, values: Mapping[str, Any]) -> int:
        """Send; a connection that is being mended loses what is sent meanwhile. Raises ValueError
        for what would end the stream."""
        number = self._sequence + 1
        data = filled(pb.ClientMessage, {"sequence": number, kind: values}).SerializeToString()
        if len(data) > MAX_STREAM_MESSAGE_BYTES:
            raise ValueError(
                f"{kind}: a message of a stream has {MAX_STREAM_MESSAGE_BYTES:,} bytes at most, "
                f"this one {len(data):,}. Call the world's `observe` or `generate` instead."
            )
        self._sequence = number
        assert self._socket is not None
        with suppress(websockets.ConnectionClosed):
            await self._socket.send(data)
        return number

    async def _connect(self) -> None:
        place = {"after": self.after, "branch": self.branch}
        query = self._options | {name: str(at) for name, at in place.items() if at is not None}
        self._socket = await websockets.connect(
            f"{self._url}?{urlencode(query)}",
            subprotocols=[SUBPROTOCOL],
            additional_headers=self._headers,
            max_size=None,
            compression=None,
        )
        self.num_connections += 1

    async def _reconnect(self) -> None:
        deadline_s = time.monotonic() + GIVE_UP_S
        for pause_s in (*PAUSES_S, *[PAUSES_S[-1]] * 100):
            await asyncio.sleep(pause_s)
            try:
                await self._connect()
                return
            except (OSError, websockets.InvalidHandshake, TimeoutError):
                if time.monotonic() > deadline_s:
                    raise


def _is_decision(closed: websockets.ConnectionClosed) -> bool:
    code = 1006 if closed.rcvd is None else closed.rcvd.code
    return code == 1000 or code >= SERVERS_DECISION


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return str(value)
