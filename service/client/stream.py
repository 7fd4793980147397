"""A live walk over the WebSocket, in protobuf; it reconnects where it broke off.

Poses are sent as often as one likes (the newest counts); frames are iterated over. When the
connection breaks or the gateway stops, the stream comes back with the number and branch of the last
frame it has handed out, so none is missed and none comes twice while the service still holds them,
and `rewound` says what somebody else has taken back meanwhile. What the server decided (deleted,
unknown, refused) is raised, an outage only when it lasts.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from contextlib import suppress
from typing import Any, Self
from urllib.parse import urlencode

import websockets
from numpy.typing import ArrayLike
from websockets.typing import Subprotocol

from service.client.frames import Frame, Pixels, ServiceError, frame_from, problem_from
from service.client.options import message_of
from service.client.outage import Outage, has_left, refused_by, refused_handshake
from service.client.underway import Underway
from service.convert import plain
from service.limits import MAX_STREAM_MESSAGE_BYTES
from service.poses import flat_of
from service.wire import world_pb2 as pb

SUBPROTOCOL = Subprotocol("mirage.v1.proto")
CONTENDED_S = 20.0  # for which a pose is sent again while others move its camera
SEQUENCE_BITS = 40


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
        self._sequence = secrets.randbits(SEQUENCE_BITS)  # frames show those of other clients, too
        self._underway = Underway(is_paced=bool(options.get("frames_per_s")))
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
        """As World.generate, but made no further ahead than it is played (`frames_per_s`).

        What is left of such a path when the connection breaks is not made: an `error` says so.
        """
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
        """Everything: frames as Frame, the rest as dictionaries with `type`; until closed.

        Raises ServiceError for a refusal that ends the stream, and what failed last when it has
        tried to come back for too long.
        """
        outage, is_broken = Outage(), False
        while not self._closed:
            try:
                if is_broken:
                    await self._connect()
                async for message in self._connection():
                    outage.saw(message)
                    told = self._underway.saw(message, self.num_connections)
                    yield message
                    for one in told:
                        yield one
            except (OSError, websockets.WebSocketException, ServiceError) as error:
                if self._closed or has_left(error):
                    return
                if (pause_s := outage.pause_s(error)) is None:
                    raise
                is_broken = True
                await asyncio.sleep(pause_s)

    async def frames(self) -> AsyncIterator[Frame]:
        """Only the frames; raises ServiceError when the server reports an error."""
        async for message in self.messages():
            if isinstance(message, Frame):
                yield message
            elif message["type"] == "error":
                raise ServiceError(message)

    async def look(self, pose: ArrayLike, **options: Any) -> Frame:
        """Be here now (as `pose`), and wait for the frame.

        What the connection lost, a rewind took back or another client's newer pose replaced is sent
        again. Raises ServiceError if others keep moving this camera, or the stream ends.
        """
        camera, start_s = options.get("camera", 0), time.monotonic()
        self._check_shown(camera)
        asked, connection = {await self.pose(pose, **options)}, self.num_connections
        async for message in self.messages():
            if isinstance(message, Frame) and message.sequence in asked:
                return message
            if not isinstance(message, Frame) and message["type"] == "error":
                raise ServiceError(message)
            if self._tells_loss(message, camera, connection):
                if time.monotonic() - start_s > CONTENDED_S:
                    raise ServiceError(_contended(camera))
                connection = self.num_connections
                asked.add(await self.pose(pose, **options))
        raise ServiceError({"detail": "the stream ended before the frame came"})

    async def walk(self, poses: AsyncIterable[ArrayLike], **options: Any) -> AsyncIterator[Pixels]:
        """Live: the picture from each pose, (H, W, 3), as `look` gets it; the next pose is sent
        when it is there.
        """
        async for pose in poses:
            yield (await self.look(pose, **options)).pixels()

    def _check_shown(self, camera: int) -> None:
        shown = self._options.get("cameras", "")
        if shown and str(camera) not in shown.split(","):
            raise ValueError(
                f"camera: {camera} is none of the cameras that this stream shows ({shown}), so its "
                "frame would never come. Open the stream with it, or without `cameras`."
            )

    def _tells_loss(self, message: Frame | dict[str, Any], camera: int, connection: int) -> bool:
        """Whether a pose that was sent on this connection may never be rendered."""
        if not isinstance(message, Frame):
            is_back = message["type"] == "hello" and self.num_connections != connection
            return is_back or message["type"] == "rewound"
        place = (message.info["branch"], message.number)
        is_old = place < (self.hello["branch"], self.hello["num_frames"])
        return message.info["kind"] == "live" and message.camera == camera and not is_old

    async def _connection(self) -> AsyncIterator[Frame | dict[str, Any]]:
        """What comes until it closes. Raises ServiceError if the server closed it and said why:
        an error that answers no message, and nothing after it; ConnectionClosed else.
        """
        last: dict[str, Any] | None = None
        try:
            async for message in self._received():
                if last is not None:
                    yield last
                last = None
                if isinstance(message, Frame) or message["type"] != "error" or message["reply_to"]:
                    yield message
                else:
                    last = message
        except websockets.ConnectionClosed as closed:
            raise refused_by(closed) if last is None else ServiceError(last) from closed

    async def _received(self) -> AsyncIterator[Frame | dict[str, Any]]:
        assert self._socket is not None
        while True:
            data = await self._socket.recv()
            if isinstance(data, str):  # of a proxy, or a server that does not speak protobuf
                problem = problem_from(data, 0)
                yield {
                    "problem": problem.get("type", ""),
                    **problem,
                    "type": "error",
                    "reply_to": 0,
                }
                continue
            message = pb.ServerMessage.FromString(data)
            kind = message.WhichOneof("message")
            if kind is None:  # of a newer protocol
                continue
            if kind == "frame":
                self.after, self.branch = message.frame.frame, message.frame.branch
                yield frame_from(message.frame)
                continue
            said = plain(getattr(message, kind))
            if kind == "hello":
                self.hello = said
            elif kind == "rewound" and self.after is not None:
                self.after, self.branch = min(self.after, said["frame"]), said["branch"]
            elif kind == "error":
                said["problem"] = said["type"]
            yield {**said, "type": kind, "reply_to": message.reply_to}

    async def _say(self, kind: str, values: Mapping[str, Any]) -> int:
        """Send; a connection that is being mended loses what is sent meanwhile. Raises TypeError
        for what there is no field for, ValueError for what a field can't hold or would end the
        stream."""
        number = self._sequence + 1
        data = message_of(kind, number, values).SerializeToString()
        if len(data) > MAX_STREAM_MESSAGE_BYTES:
            raise ValueError(
                f"{kind}: a message of a stream has {MAX_STREAM_MESSAGE_BYTES:,} bytes at most, "
                f"this one {len(data):,}. Call the world's `observe` or `generate` instead."
            )
        self._sequence = number
        if kind == "path":
            self._underway.sent(number, self.num_connections)
        assert self._socket is not None
        with suppress(websockets.ConnectionClosed):
            await self._socket.send(data)
        return number

    async def _connect(self) -> None:
        """Raises ServiceError if a proxy refuses."""
        place = {"after": self.after, "branch": self.branch}
        query = self._options | {name: str(at) for name, at in place.items() if at is not None}
        try:
            self._socket = await websockets.connect(
                f"{self._url}?{urlencode(query)}",
                subprotocols=[SUBPROTOCOL],
                additional_headers=self._headers,
                max_size=None,
                compression=None,
            )
        except websockets.InvalidStatus as refused:
            raise refused_handshake(refused) from refused
        self.num_connections += 1
        if self._closed:  # meanwhile
            await self._socket.close()


def _contended(camera: int) -> dict[str, Any]:
    return {
        "status": 409,
        "detail": f"camera {camera} is moved by others all the time, and the newest pose wins; "
        "use another camera, or a fork",
    }


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return str(value)
