"""The Python SDK: worlds, paths and frames over REST (sync), and live over the WebSocket (async).

    with Mirage("http://127.0.0.1:8000") as mirage:
        world = mirage.create("photo.jpg")
        walk = world.generate(actions=[{"forward_m": 1.0}, {"yaw_deg": 30}])
        for frame in walk.frames():
            print(frame.number, frame.coverage, frame.pixels().shape)
        Path("walk.mp4").write_bytes(walk.video())

Every POST carries an Idempotency-Key, so a lost answer is asked for again without doing it twice.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx
import numpy as np
import websockets
from numpy.typing import NDArray

from service.poses import Array, flat
from service.video import decode_frame

TRIES = 3
RETRY_S = 0.3
WAIT_S = 10.0  # of one long poll
FINAL = ("done", "failed", "cancelled")


class ServiceError(Exception):
    """The service refused; `problem` is its answer (RFC 9457)."""

    def __init__(self, problem: dict[str, Any]) -> None:
        fields = [
            f"{one['field']}: got {one['seen']}, allowed: {one['allowed']}"
            for one in problem.get("errors", [])
        ]
        super().__init__("; ".join([str(problem.get("detail", problem)), *fields]))
        self.problem = problem


@dataclass(frozen=True)
class Frame:
    """One frame: what the service says about it, and its encoded picture."""

    info: dict[str, Any]
    image: bytes

    @property
    def number(self) -> int:
        return int(self.info["frame"])

    @property
    def coverage(self) -> float | None:
        """The share of this frame that the world's memory knew."""
        value: float | None = self.info["coverage"]
        return value

    @property
    def pose(self) -> Array:
        """(4, 4) world_from_camera, OpenCV axes, metres."""
        return np.asarray(self.info["matrix"], dtype=np.float64).reshape(4, 4)

    def pixels(self) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 RGB."""
        return decode_frame(self.image)


class Mirage:
    """One server. `transport` replaces the network in tests."""

    def __init__(self, url: str, transport: httpx.BaseTransport | None = None) -> None:
        self.url = url.rstrip("/")
        self._http = httpx.Client(base_url=self.url, timeout=60.0, transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def create(
        self,
        image: str | Path | bytes | None = None,
        *,
        sample: str | None = None,
        depth: str | Path | bytes | None = None,
        **options: str | float | int,
    ) -> World:
        """Open a world from an image or a sample; options: fov_deg, fx fy cx cy, seed, memory."""
        given = {"image": image, "depth": depth}
        files = {name: (name, _read(file)) for name, file in given.items() if file is not None}
        form = {name: str(value) for name, value in options.items()}
        if sample is not None:
            form["sample"] = sample
        info = self.json("POST", "/v1/sessions", data=form, files=files or None)
        return World(self, info)

    def world(self, session_id: str) -> World:
        """A world that exists."""
        return World(self, self.json("GET", f"/v1/sessions/{session_id}"))

    def worlds(self) -> Iterator[World]:
        """All of them, newest first."""
        query: dict[str, str] = {}
        while True:
            page = self.json("GET", "/v1/sessions", params=query)
            yield from (World(self, info) for info in page["sessions"])
            if page["next_cursor"] is None:
                return
            query = {"cursor": page["next_cursor"]}

    def json(self, method: str, path: str, **kwargs: Any) -> dict[str, Any]:
        """A call that answers JSON; raises ServiceError."""
        answer: dict[str, Any] = self.call(method, path, **kwargs).json()
        return answer

    def call(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        """Any call, tried again when the connection fails; raises ServiceError, TransportError."""
        headers = {"Idempotency-Key": uuid.uuid4().hex} if method == "POST" else {}
        for attempt in range(TRIES):
            try:
                answer = self._http.request(method, path, headers=headers, **kwargs)
                break
            except httpx.TransportError:
                if attempt == TRIES - 1:
                    raise
                time.sleep(RETRY_S * 2**attempt)
        if answer.is_error:
            raise ServiceError(_problem(answer))
        return answer


class World:
    """A session; `info` is as of the last look."""

    def __init__(self, mirage: Mirage, info: dict[str, Any]) -> None:
        self.mirage, self.info = mirage, info
        self.id = str(info["id"])
        self.path = f"/v1/sessions/{self.id}"

    def refresh(self) -> dict[str, Any]:
        self.info = self.mirage.json("GET", self.path)
        return self.info

    def memory(self) -> dict[str, Any]:
        """num_points, num_bytes, coverage, ..."""
        return self.mirage.json("GET", f"{self.path}/memory")

    def delete(self) -> None:
        self.mirage.call("DELETE", self.path)

    def generate(
        self,
        poses: Sequence[Array] | None = None,
        actions: Sequence[Mapping[str, float]] | None = None,
        **options: str | float,
    ) -> Generation:
        """Ask for a path: (4, 4) poses, or actions from the last camera; options: axes, step_m."""
        body: dict[str, Any] = dict(options)
        if poses is not None:
            body["poses"] = [{"matrix": flat(np.asarray(pose))} for pose in poses]
        if actions is not None:
            body["actions"] = [dict(action) for action in actions]
        info = self.mirage.json("POST", f"{self.path}/generations", json=body)
        return Generation(self, info)

    def opened(self) -> Generation:
        """The request that makes frame 0."""
        path = f"{self.path}/generations/{self.info['init_request']}"
        return Generation(self, self.mirage.json("GET", path))

    def frame(self, number: int) -> Frame:
        """One frame that exists."""
        found = self.mirage.json(
            "GET", f"{self.path}/frames", params={"after": number - 1, "limit": 1}
        )["frames"]
        if not found:
            raise ServiceError({"detail": f"there is no frame {number} yet", "status": 404})
        return self._fetch(found[0])

    def frames(self, after: int = -1, wait_s: float = WAIT_S) -> Iterator[Frame]:
        """Frames as they are made; ends when none came for `wait_s`."""
        while True:
            query = {"after": after, "wait_s": wait_s}
            found = self.mirage.json("GET", f"{self.path}/frames", params=query)["frames"]
            for info in found:
                yield self._fetch(info)
                after = info["frame"]
            if not found:
                return

    @asynccontextmanager
    async def stream(self, after: int | None = None) -> AsyncIterator[Stream]:
        """Walk live; `after`: the last frame you have (None: only new ones)."""
        query = "" if after is None else f"?after={after}"
        url = f"{self.mirage.url.replace('http', 'ws', 1)}{self.path}/stream{query}"
        async with websockets.connect(url, max_size=None) as socket:
            yield Stream(socket)

    def _fetch(self, info: dict[str, Any]) -> Frame:
        return Frame(info, self.mirage.call("GET", info["image"]).content)


class Generation:
    """A path that is being walked; `info` is its progress as of the last look."""

    def __init__(self, world: World, info: dict[str, Any]) -> None:
        self.world, self.info = world, info
        self.path = f"{world.path}/generations/{info['id']}"

    @property
    def is_final(self) -> bool:
        return self.info["state"] in FINAL

    def refresh(self) -> dict[str, Any]:
        self.info = self.world.mirage.json("GET", self.path)
        return self.info

    def cancel(self) -> None:
        self.info = self.world.mirage.json("POST", f"{self.path}:cancel")

    def frames(self) -> Iterator[Frame]:
        """Its frames as they are made, each once and in order; raises ServiceError if it fails."""
        after: int | None = None
        while True:
            self.refresh()
            if after is None and self.info["first_frame"] is not None:
                after = self.info["first_frame"] - 1
            if after is None and not self.is_final:
                time.sleep(0.1)
                continue
            last = self.info["last_frame"]
            while last is not None and after is not None and after < last:
                frame = self.world.frame(after + 1)
                yield frame
                after = frame.number
            if self.is_final:
                self._raise_if_failed()
                return
            self._wait(after)

    def wait(self) -> dict[str, Any]:
        """Until it is final; raises ServiceError if it failed."""
        for _ in self.frames():
            pass
        return self.info

    def video(self, frames_per_s: int = 15) -> bytes:
        """The finished walk as MP4 (H.264)."""
        query = {"frames_per_s": frames_per_s}
        return self.world.mirage.call("GET", f"{self.path}/video.mp4", params=query).content

    def _wait(self, after: int | None) -> None:
        query = {"after": after, "wait_s": 1.0, "limit": 1}
        self.world.mirage.json("GET", f"{self.world.path}/frames", params=query)

    def _raise_if_failed(self) -> None:
        if self.info["state"] == "failed":
            raise ServiceError(self.info["error"] or {"detail": "the generation failed"})


class Stream:
    """A live walk. Send poses as often as you like; iterate over the frames."""

    def __init__(self, socket: websockets.ClientConnection) -> None:
        self._socket = socket

    async def send(self, **message: Any) -> None:
        """Any message of the protocol, as in send(type="ping")."""
        await self._socket.send(json.dumps(message))

    async def pose(self, pose: Array, **options: Any) -> None:
        """Be here now: (4, 4); a newer pose replaces it if nobody began it."""
        await self.send(type="pose", matrix=flat(np.asarray(pose)), **options)

    async def messages(self) -> AsyncIterator[dict[str, Any] | Frame]:
        """Everything the server sends: frames as Frame, the rest as it is; ends with the socket."""
        head: dict[str, Any] | None = None
        async for data in self._socket:
            if isinstance(data, bytes):
                assert head is not None
                yield Frame(head, data)
            else:
                head = json.loads(data)
                assert head is not None
                if head["type"] != "frame":
                    yield head

    async def frames(self) -> AsyncIterator[Frame]:
        """Only the frames; raises ServiceError when the server reports an error."""
        async for message in self.messages():
            if isinstance(message, Frame):
                yield message
            elif message["type"] == "error":
                raise ServiceError(message)


def _read(file: str | Path | bytes) -> bytes:
    return file if isinstance(file, bytes) else Path(file).read_bytes()


def _problem(answer: httpx.Response) -> dict[str, Any]:
    if "json" not in answer.headers.get("content-type", ""):
        return {"status": answer.status_code, "detail": f"HTTP {answer.status_code}"}
    problem: dict[str, Any] = answer.json()
    return problem
