"""The SDK without `await`: each call is that of aio.py, waited for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import httpx
from numpy.typing import ArrayLike

from service.client.aio import AsyncGeneration, AsyncMirage, AsyncWorld, File, Json
from service.client.frames import Frame, Pixels
from service.client.portal import Portal, PortalClosed
from service.client.stream import Stream


class Mirage:
    """One server; see AsyncMirage."""

    def __init__(
        self,
        url: str,
        key: str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._portal = Portal()
        self._mirage = AsyncMirage(url, key, transport)
        self.url = self._mirage.url

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        with suppress(PortalClosed):
            self._portal.run(self._mirage.close())
        self._portal.close()

    def create(
        self,
        image: File | None = None,
        *,
        sample: str | None = None,
        depth: File | None = None,
        mask: File | None = None,
        **options: str | float | int,
    ) -> World:
        """Open a world from an image or a sample; options: fov_deg, fx fy cx cy, seed, memory,
        scale_m.
        """
        making = self._mirage.create(image, sample=sample, depth=depth, mask=mask, **options)
        return World(self._portal, self._portal.run(making))

    def world(self, session_id: str) -> World:
        """A world that exists."""
        return World(self._portal, self._portal.run(self._mirage.world(session_id)))

    def worlds(self) -> Iterator[World]:
        """All of them, newest first."""
        for world in self._portal.iterate(self._mirage.worlds()):
            yield World(self._portal, world)

    def import_world(self, path: str | Path) -> World:
        """Open a world of your own on an exported one, of this server or another."""
        return World(self._portal, self._portal.run(self._mirage.import_world(path)))

    def fork_shared(self, share: str, frame: int | None = None, seed: int | None = None) -> World:
        """Make a world that somebody shared with you (its `credential`) one of your own."""
        forking = self._mirage.fork_shared(share, frame, seed)
        return World(self._portal, self._portal.run(forking))

    def json(self, method: str, path: str, **kwargs: Any) -> Json:
        """A call that answers JSON; raises ServiceError."""
        return self._portal.run(self._mirage.json(method, path, **kwargs))

    def call(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        """Any call, tried again if need be; raises ServiceError, TransportError."""
        return self._portal.run(self._mirage.call(method, path, **kwargs))


class World:
    """A session; `info` is as of the last look."""

    def __init__(self, portal: Portal, world: AsyncWorld) -> None:
        self._portal, self._world = portal, world
        self.id = world.id

    @property
    def info(self) -> Json:
        return self._world.info

    def refresh(self) -> Json:
        return self._portal.run(self._world.refresh())

    def memory(self) -> Json:
        """num_points, num_bytes, coverage, ..."""
        return self._portal.run(self._world.memory())

    def points(
        self, format: str = "ply", axes: str | None = None, max_points: int | None = None
    ) -> bytes:
        """What the world remembers as a file of coloured points: `ply` (in any axes) or `glb`."""
        return self._portal.run(self._world.points(format, axes, max_points))

    def export(self, path: str | Path, snapshot: str | None = None) -> None:
        """The whole world as one file, as it is now or as `snapshot`."""
        self._portal.run(self._world.export(path, snapshot))

    def share(self, may: str = "look", lifetime_s: int = 86_400) -> Json:
        """A link for others, to `look` at or `walk` in this world; see AsyncWorld.share."""
        return self._portal.run(self._world.share(may, lifetime_s))

    def shares(self) -> list[Json]:
        """The share links that are still good, without their credentials."""
        return self._portal.run(self._world.shares())

    def unshare(self, share_id: str) -> None:
        """End a share link now."""
        self._portal.run(self._world.unshare(share_id))

    def delete(self) -> None:
        self._portal.run(self._world.delete())

    def generate(
        self,
        poses: Sequence[ArrayLike] | None = None,
        actions: Sequence[Mapping[str, float]] | None = None,
        **options: str | float,
    ) -> Generation:
        """Ask for a path: (4, 4) poses, or actions from the last camera."""
        asking = self._world.generate(poses, actions, **options)
        return Generation(self._portal, self._portal.run(asking))

    def walk(self, **path: Any) -> Iterator[Pixels]:
        """Walk a path (as `generate`) and yield its pictures, (H, W, 3), as they are made."""
        return self._portal.iterate(self._world.walk(**path))

    def opened(self) -> Generation:
        """The request that makes frame 0."""
        return Generation(self._portal, self._portal.run(self._world.opened()))

    def observe(
        self,
        image: File,
        pose: ArrayLike,
        depth: File | None = None,
        mask: File | None = None,
        **options: str | float,
    ) -> Generation:
        """Write what was really seen from `pose` into the memory, but what the mask hides."""
        seeing = self._world.observe(image, pose, depth, mask, **options)
        return Generation(self._portal, self._portal.run(seeing))

    def fork(
        self, frame: int | None = None, seed: int | None = None, snapshot: str | None = None
    ) -> World:
        """Another world with this one's past: as it stands, up to `frame`, or as `snapshot`."""
        return World(self._portal, self._portal.run(self._world.fork(frame, seed, snapshot)))

    def rewind(self, frame: int | None = None, snapshot: str | None = None) -> Json:
        """Undo: what comes after `frame`, or `snapshot`, is forgotten."""
        return self._portal.run(self._world.rewind(frame, snapshot))

    def snapshot(self, name: str, replace: bool = False) -> Json:
        """Name the present state; `replace`: also if the name stands for another one."""
        return self._portal.run(self._world.snapshot(name, replace))

    def snapshots(self) -> list[Json]:
        """All names given, oldest first."""
        return self._portal.run(self._world.snapshots())

    def frame(self, number: int) -> Frame:
        """One frame that exists."""
        return self._portal.run(self._world.frame(number))

    def frames(self, after: int = -1, wait_s: float = 10.0) -> Iterator[Frame]:
        """Frames as they are made; ends when none came for `wait_s`."""
        return self._portal.iterate(self._world.frames(after, wait_s))

    def stream(self, after: int | None = None, **options: Any) -> LiveStream:
        """Walk live; see AsyncWorld.stream."""
        return LiveStream(self._portal, self._world.stream(after, **options))


class Generation:
    """A request that is being done; `info` is its progress as of the last look."""

    def __init__(self, portal: Portal, generation: AsyncGeneration) -> None:
        self._portal, self._generation = portal, generation

    @property
    def info(self) -> Json:
        return self._generation.info

    @property
    def is_final(self) -> bool:
        return self._generation.is_final

    def refresh(self) -> Json:
        return self._portal.run(self._generation.refresh())

    def cancel(self) -> None:
        self._portal.run(self._generation.cancel())

    def frames(self) -> Iterator[Frame]:
        """Its frames as they are made, each once and in order; raises ServiceError if it fails."""
        return self._portal.iterate(self._generation.frames())

    def wait(self) -> Json:
        """Until it is final; raises ServiceError if it failed."""
        return self._portal.run(self._generation.wait())

    def video(self, frames_per_s: int = 15) -> bytes:
        """The finished walk as MP4 (H.264)."""
        return self._portal.run(self._generation.video(frames_per_s))

    def save(self, path: str | Path, frames_per_s: int = 15) -> None:
        """The finished walk as an MP4 file."""
        self._portal.run(self._generation.save(path, frames_per_s))


class LiveStream:
    """A Stream without `await`: with world.stream() as stream: ..."""

    def __init__(self, portal: Portal, stream: Stream) -> None:
        self._portal, self._stream = portal, stream

    def __enter__(self) -> Self:
        self._portal.run(self._stream.__aenter__())
        return self

    def __exit__(self, *_: object) -> None:
        self._portal.run(self._stream.__aexit__())

    def pose(self, pose: ArrayLike, **options: Any) -> int:
        """Be here now; returns the `sequence` of its frame."""
        return self._portal.run(self._stream.pose(pose, **options))

    def input(self, **held: Any) -> int:
        """What is held down until the next call."""
        return self._portal.run(self._stream.input(**held))

    def path(self, **path: Any) -> int:
        """As World.generate, but made no further ahead than it is played; see Stream.path."""
        return self._portal.run(self._stream.path(**path))

    def observe(self, pose: ArrayLike, image: bytes, **seen: Any) -> int:
        """What was really seen from a pose."""
        return self._portal.run(self._stream.observe(pose, image, **seen))

    def fork(self, frame: int | None = None, seed: int | None = None) -> int:
        """A new world with this one's past; `forked` in messages() names it."""
        return self._portal.run(self._stream.fork(frame, seed))

    def cancel(self, request: str) -> int:
        return self._portal.run(self._stream.cancel(request))

    def play(self, paused: bool | None = None, speed: float | None = None) -> int:
        return self._portal.run(self._stream.play(paused, speed))

    def seek(self, frame: int) -> int:
        """Rewind."""
        return self._portal.run(self._stream.seek(frame))

    def ping(self) -> int:
        return self._portal.run(self._stream.ping())

    def look(self, pose: ArrayLike, **options: Any) -> Frame:
        """Be here now, and wait for the frame; see Stream.look."""
        return self._portal.run(self._stream.look(pose, **options))

    def walk(self, poses: Iterable[ArrayLike], **options: Any) -> Iterator[Pixels]:
        """Live: the picture from each pose, (H, W, 3)."""
        for pose in poses:
            yield self.look(pose, **options).pixels()

    def messages(self) -> Iterator[Frame | Json]:
        """Everything the server says."""
        return self._portal.iterate(self._stream.messages())

    def frames(self) -> Iterator[Frame]:
        """Only the frames; raises ServiceError when the server reports an error."""
        return self._portal.iterate(self._stream.frames())
