"""The frame bus: recent frames from a bounded Redis stream, older ones from segments.

An event's stream id is `branch`-`frame + 1`, so that a reader resumes by number and the stream
itself refuses a frame that is already there. The manifest (one entry per segment) says which
segment holds a frame that left the stream.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, TypeAdapter
from pydantic_core import from_json
from redis.asyncio import Redis

from service.control import keys, scripts
from service.control.batches import Pipelined
from service.control.callers import Caller, Held, is_full
from service.errors import FramesGone, SegmentMissing, Unavailable, UnknownFrame
from service.store.segments import FrameMeta, SegmentStore, parse_segment

NOBODY = Caller()
SEGMENTS_BACK = 32  # in which a camera's last frame is looked for, where the stream has none
LONG = 512  # entries: reading or writing them is worth waking a thread


class ManifestEntry(BaseModel):
    """One segment of a World, in the manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    kind: str
    branch: int
    first_frame: int  # the next frame's number, where the segment shows none
    num_frames: int
    num_bytes: int  # of the segment
    num_points: int = 0  # of the World after it
    world_bytes: int = 0
    home: str = ""  # the session under which the segment lies, where it is not this one (a fork)

    @property
    def next_frame(self) -> int:
        return self.first_frame + self.num_frames

    def holds(self, frame: int) -> bool:
        return self.first_frame <= frame < self.next_frame


MANIFEST: TypeAdapter[list[ManifestEntry]] = TypeAdapter(list[ManifestEntry])


def parse_manifest(entries: Sequence[bytes]) -> list[ManifestEntry]:
    """Entries as Redis holds them, many at once, as a long manifest has thousands; not all at once,
    as every other thread stands still meanwhile.
    """
    found: list[ManifestEntry] = []
    for first in range(0, len(entries), LONG):
        found += MANIFEST.validate_json(b"[" + b",".join(entries[first : first + LONG]) + b"]")
    return found


async def read_manifest(entries: Sequence[bytes]) -> list[ManifestEntry]:
    """The same; nobody waits for a long one."""
    is_long = len(entries) >= LONG
    return await asyncio.to_thread(parse_manifest, entries) if is_long else parse_manifest(entries)


class Frame(FrameMeta):
    """One frame as clients get it: the worker encoded it once."""

    image: bytes

    @cached_property
    def text(self) -> str:
        """Everything but the image as JSON, for its segment and for its event alike."""
        return self.model_dump_json(exclude={"image"})

    def meta(self) -> dict[str, Any]:
        """Everything but the image, ready for JSON."""
        return self.model_dump(mode="json", exclude={"image"})


def event_id(branch: int, frame: int) -> str:
    """Stream id of a frame; never 0-0, which Redis refuses."""
    return f"{branch}-{frame + 1}"


class FrameBus:
    """Read frames by number: from the stream where it still has them, else from segments."""

    def __init__(self, redis: Redis, store: SegmentStore) -> None:
        self._redis: Any = redis  # redis-py's types mix its sync and async answers
        self._pipelined = Pipelined(redis)
        self._store = store
        self._waiting: Held = Counter()  # long polls

    async def read(
        self,
        session: str,
        after: int = -1,
        wait_s: float = 0.0,
        limit: int = 16,
        branch: int | None = None,
        caller: Caller = NOBODY,
    ) -> list[Frame]:
        """Up to `limit` consecutive frames after number `after`; waits up to `wait_s` if there are
        none yet. With `branch`: none once the session has left that branch (it was rewound).
        `caller`: who asks.

        Raises UnknownSession, SessionDeleted, FramesGone, and Unavailable where too many wait.
        """
        position = await self._position(session)
        frames = await self._ready(session, position, after, limit, branch)
        if frames or wait_s <= 0 or branch not in (None, position.branch):
            return frames
        await self._wait(session, event_id(position.branch, after), wait_s, caller)
        position = await self._position(session)
        return await self._ready(session, position, after, limit, branch)

    async def get(self, session: str, frame: int) -> Frame:
        """One frame; raises UnknownFrame if it was not made (yet), FramesGone if it is no longer
        kept.
        """
        found = await self.read(session, after=frame - 1, limit=1) if frame >= 0 else []
        if not found:
            raise UnknownFrame(f"session {session!r} has no frame {frame}")
        return found[0]

    async def last(self, session: str, camera: int) -> Frame:
        """The newest frame of a camera among those of the stream and of the last segments (a fork
        begins with an empty stream); where there is none, the newest of all. Raises what `read`
        raises.
        """
        position = await self._position(session)
        newest = await self.get(session, position.next_frame - 1)
        if newest.camera == camera:
            return newest
        upper, oldest = event_id(newest.branch, newest.frame), newest.frame + 1
        while events := await self._redis.xrevrange(
            keys.frames(session), max=f"({upper}", count=16
        ):
            for name, event in events:
                one, upper = _frame(event), name.decode()
                oldest = min(oldest, one.frame)
                if one.camera == camera and await self._is_kept(session, position, one):
                    return one
        return await self._stored(session, camera, oldest) or newest

    async def _stored(self, session: str, camera: int, before: int) -> Frame | None:
        """The newest frame of a camera in the last segments, of those that begin before a frame."""
        lines = await self._redis.lrange(keys.manifest(session), -SEGMENTS_BACK, -1)
        for entry in reversed(parse_manifest(lines)):
            if entry.num_frames and entry.first_frame < before:
                for frame in reversed(await self._of_segment(session, entry)):
                    if frame.camera == camera:
                        return frame
        return None

    async def _is_kept(self, session: str, position: _Position, frame: Frame) -> bool:
        """Whether no rewind took it back."""
        if frame.branch == position.branch:
            return True
        entry = await self.segment_of(session, frame.frame)
        return entry is not None and entry.branch == frame.branch

    async def manifest(self, session: str) -> list[ManifestEntry]:
        """The World's segments in order."""
        return await read_manifest(await self._redis.lrange(keys.manifest(session), 0, -1))

    async def segment_of(self, session: str, frame: int) -> ManifestEntry | None:
        """The segment that holds a frame, without the others: a long World has thousands."""
        return await self._entry("find", session, frame)

    async def newer_than(self, session: str, branch: int) -> ManifestEntry | None:
        """The first segment of a newer branch, without the others."""
        return await self._entry("newer", session, branch)

    async def _entry(self, script: str, session: str, number: int) -> ManifestEntry | None:
        entry = await scripts.run(self._pipelined, script, [keys.manifest(session)], [number])
        return None if entry is None else ManifestEntry.model_validate_json(entry)

    async def _position(self, session: str) -> _Position:
        state, current, next_frame = await self._pipelined.execute_command(
            "HMGET", keys.record(session), "state", "branch", "next_frame"
        )
        if state in (None, b"deleted"):
            scripts.raise_for_state(session, state or b"unknown")
        return _Position(int(current), int(next_frame))

    async def _ready(
        self, session: str, position: _Position, after: int, limit: int, branch: int | None
    ) -> list[Frame]:
        if after + 1 >= position.next_frame or branch not in (None, position.branch):
            return []
        events = await self._redis.xrange(
            keys.frames(session),
            min=f"({event_id(position.branch, after)}",
            max=f"{position.branch}-{2**64 - 1}",
            count=limit,
        )
        frames = [_frame(event) for _, event in events]
        if frames and frames[0].frame == after + 1:
            return frames
        return await self._from_segments(session, after + 1, limit)

    async def _wait(self, session: str, last: str, wait_s: float, caller: Caller) -> None:
        """Each holds a connection meanwhile, of which there are not so many."""
        every, own = self._waiting.total(), self._waiting[caller]
        is_crowded = is_full(self._waiting, caller, keys.OWNERS_LONG_POLLS)
        if every >= keys.MAX_LONG_POLLS or is_crowded:
            whose = "with this share link" if caller.share else "of this owner's keys"
            raise Unavailable(
                f"{every} requests wait for frames here already, {own} of them {whose}; ask "
                "without waiting, or follow a stream",
                retry_after_s=1.0,
            )
        block_ms = max(1, int(1000 * min(wait_s, keys.MAX_WAIT_S)))
        self._waiting[caller] += 1
        try:
            await self._redis.xread({keys.frames(session): last}, count=1, block=block_ms)
        finally:
            self._waiting -= Counter([caller])  # and forget who has none

    async def _from_segments(self, session: str, frame: int, limit: int) -> list[Frame]:
        """Frames that left the stream, up to the end of the segment that holds the first."""
        entry = await self.segment_of(session, frame)
        if entry is None:  # rewound just now
            raise FramesGone(f"frame {frame} is no longer kept", frame + 1)
        frames = await self._of_segment(session, entry)
        return [one for one in frames if one.frame >= frame][:limit]

    async def _of_segment(self, session: str, entry: ManifestEntry) -> list[Frame]:
        try:
            data = await self._store.get(entry.home or session, entry.id)
        except SegmentMissing as error:
            numbers = f"{entry.first_frame} to {entry.next_frame - 1}"
            detail = f"frames {numbers} are no longer kept: {error.detail}"
            raise FramesGone(detail, entry.next_frame) from error
        header, images = parse_segment(data)
        return [_whole(*pair) for pair in zip(header.frames, images, strict=True)]


class _Position(NamedTuple):
    branch: int
    next_frame: int


def _frame(event: dict[bytes, bytes]) -> Frame:
    return _parsed(event[b"meta"], event[b"image"])


def parse_push(data: bytes) -> Frame:
    """A frame as a commit publishes it: its meta as JSON, a line end, its image."""
    meta, _, image = data.partition(b"\n")
    return _parsed(meta, image)


def _parsed(meta: bytes, image: bytes) -> Frame:
    values = from_json(meta)
    return Frame.model_validate({**values, "image": image})


def _whole(meta: FrameMeta, image: bytes) -> Frame:
    """Checked twice, which takes half as long as pydantic's way of not checking."""
    return Frame(**meta.__dict__, image=image)
