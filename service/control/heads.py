"""Head objects: where a World stands, written to the store so that it outlives Redis.

A head holds what the record, the manifest and the names hold in Redis. One is written when a
session is opened, before a fork, rewind or snapshot is acknowledged, and then ever more rarely
(`is_due`); what was committed since is found again by following segments that name their parents.
A snapshot is a head of its own, so it stays complete when the session is rewound past it. Heads are
compressed JSON: mostly checksums, about 60 bytes per segment.
"""

from __future__ import annotations

import asyncio
import re
import time
import zlib
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Literal

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from redis.asyncio import Redis

from service.control import keys, scripts
from service.control.batches import Argument
from service.control.frames import LONG, ManifestEntry, read_manifest
from service.control.requests import Init
from service.control.sessions import NewSession, Session, parse_record
from service.errors import (
    InvalidRequest,
    SegmentCorrupt,
    SegmentError,
    SessionDeleted,
    StoreDown,
    UnknownFrame,
    UnknownSession,
    UnknownSnapshot,
)
from service.store.objects import ObjectStore, sha256

LOG = structlog.get_logger()
SUFFIX = ".json.z"
HEAD_ID = re.compile(r"\d{12}-[0-9a-f]{64}", re.ASCII)


class Name(BaseModel):
    """A snapshot, as the session's names hold it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    tip: str
    branch: int
    num_segments: int
    num_frames: int
    head: str  # id of the head object that holds it
    created_s: float


class Head(BaseModel):
    """Everything about a World but its segments."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    session: str
    version: int  # of the record
    spec: NewSession
    branch: int = 1
    branch_first_frame: int = 0
    weights: str = ""
    num_points: int = 0
    world_bytes: int = 0
    manifest: list[ManifestEntry] = []
    names: dict[str, Name] = {}
    init: Init | None = None  # as long as the first image was not opened
    init_request: str
    created_s: float
    written_s: float = Field(default_factory=time.time)

    @property
    def tip(self) -> str:
        return self.manifest[-1].id if self.manifest else ""

    @property
    def next_frame(self) -> int:
        return self.manifest[-1].next_frame if self.manifest else 0

    def upto_frame(self, frame: int) -> Head:
        """The World as it was when the last segment that ends with `frame` or before was new.

        Raises UnknownFrame, InvalidRequest.
        """
        if not 0 <= frame < self.next_frame:
            last = self.next_frame - 1
            raise UnknownFrame(f"there is no frame {frame}: give one of 0 .. {last}")
        ends = [
            at
            for at, entry in enumerate(self.manifest, start=1)
            if entry.num_frames and entry.next_frame <= frame + 1
        ]
        if not ends:
            first = next(one.next_frame - 1 for one in self.manifest if one.num_frames)
            raise InvalidRequest(
                f"frame {frame} lies inside the first chunk, which ends with {first}"
            )
        return self.cut(ends[-1])

    def cut(self, num_segments: int) -> Head:
        """The World of the first segments."""
        kept = self.manifest[:num_segments]
        size = {"num_points": kept[-1].num_points, "world_bytes": kept[-1].world_bytes}
        return self.model_copy(update={"manifest": kept, **size})

    @property
    def is_long(self) -> bool:
        """Whether it takes so long to write that others must not wait for it."""
        return len(self.manifest) >= LONG

    def lines(self, first: int = 0) -> list[str]:
        """The manifest from an entry on, as it stands in Redis."""
        return [one.model_dump_json(exclude_defaults=True) for one in self.manifest[first:]]

    def document(self, exclude_defaults: bool = False) -> bytes:
        """As JSON, segment by segment: at once, every other thread would stand still meanwhile."""
        rest = self.model_dump_json(exclude={"manifest"}, exclude_defaults=exclude_defaults)
        entries = [one.model_dump_json(exclude_defaults=exclude_defaults) for one in self.manifest]
        return f'{rest[:-1]},"manifest":[{",".join(entries)}]}}'.encode()

    def record(self) -> dict[str, Argument]:
        """The fields of the record that say where the World stands."""
        return {
            "branch": self.branch,
            "branch_first_frame": self.branch_first_frame,
            "tip": self.tip,
            "next_frame": self.next_frame,
            "num_segments": len(self.manifest),
            "num_points": self.num_points,
            "num_bytes": self.world_bytes,
            "weights": self.weights,
        }


def pack(head: Head) -> bytes:
    return zlib.compress(head.document(exclude_defaults=True), 1)  # ids are noise


async def _packed(head: Head) -> bytes:
    return await asyncio.to_thread(pack, head) if head.is_long else pack(head)


def unpack(data: bytes) -> Head:
    """Raises SegmentCorrupt."""
    try:
        return Head.model_validate_json(zlib.decompress(data))
    except (zlib.error, ValidationError) as error:
        raise SegmentCorrupt(f"a head object can't be read: {error}") from error


class Heads:
    """Heads of sessions, in Redis as they are and in the store as they were written."""

    def __init__(self, redis: Redis, objects: ObjectStore) -> None:
        self._redis: Any = redis  # redis-py's types mix its sync and async answers
        self._objects = objects

    async def current(self, session: str) -> Head:
        """Where a session stands, at one moment; raises UnknownSession, SessionDeleted."""
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hgetall(keys.record(session))
            pipe.lrange(keys.manifest(session), 0, -1)
            pipe.hgetall(keys.names(session))
            pipe.xrange(keys.log(session), count=1)
            record, manifest, names, log = await pipe.execute()
        if not record or record[b"state"] == b"deleted":
            scripts.raise_for_state(session, b"deleted" if record else b"unknown")
        init = None
        if not manifest and log and log[0][1][b"kind"] == b"init":
            init = Init.model_validate_json(log[0][1][b"body"])
        return _head(parse_record(record), await read_manifest(manifest), names, init)

    async def first(self, session: str, new: NewSession, init: Init, request_id: str) -> Head:
        """Write and return the head of a session whose first image is to be opened."""
        head = Head(
            session=session,
            version=1,
            spec=new,
            init=init,
            init_request=request_id,
            created_s=time.time(),
        )
        await self.write(head)
        return head

    async def write(self, head: Head) -> str:
        """Store a head, the newest of its session if no other has a higher version; its id."""
        data = await _packed(head)
        name = f"{head.version:012d}-{sha256(data)}"
        await self._objects.put(head_path(head.session, name), data)
        return name

    async def checkpoint(self, session: str) -> None:
        """To be called when `is_due` after a commit: write a head and remove old ones.

        A store that fails now costs nothing: the segments since the last head lead to the tip.
        """
        try:
            await self.write(await self.current(session))
            await self.prune(session)
        except (StoreDown, UnknownSession, SessionDeleted) as error:
            LOG.warning("head not written", session=session, reason=error.detail)

    async def prune(self, session: str) -> None:
        """Remove all heads but the newest few."""
        old = (await self.ids(session))[: -keys.HEADS_KEPT]
        await self._objects.delete(head_path(session, one) for one in old)

    async def ids(self, session: str) -> list[str]:
        """Ids of the heads that lie in the store, oldest first."""
        return await self._objects.names(f"sessions/{session}/heads", HEAD_ID, SUFFIX)

    async def get(self, session: str, name: str) -> Head:
        """Raises SegmentMissing, SegmentCorrupt."""
        path = head_path(session, name)
        return unpack(await self._objects.read_verified(path, name.rpartition("-")[2]))

    async def put_snapshot(self, head: Head) -> str:
        """Store a head that is named; its id."""
        data = await _packed(head.model_copy(update={"names": {}}))
        name = sha256(data)
        await self._objects.put(snapshot_path(head.session, name), data)
        return name

    async def get_snapshot(self, session: str, name: Name) -> Head:
        """Raises SegmentMissing, SegmentCorrupt."""
        return unpack(
            await self._objects.read_verified(snapshot_path(session, name.head), name.head)
        )

    async def named(self, head: Head, snapshot: str) -> Head:
        """The World that a name of this one stands for; raises UnknownSnapshot."""
        name = head.names.get(snapshot)
        if name is None:
            known = ", ".join(sorted(head.names)) or "none"
            raise UnknownSnapshot(
                f"session {head.session!r} has no snapshot {snapshot!r}; it has {known}"
            )
        if name.num_segments <= len(head.manifest):
            cut = head.cut(name.num_segments)
            if cut.tip == name.tip:
                return cut
        return await self.get_snapshot(head.session, name)

    async def homes(self, head: Head) -> set[str]:
        """Other sessions whose segments a World is made of, or one of its snapshots."""
        manifests = [head.manifest]
        for name in head.names:
            with suppress(SegmentError):  # a snapshot that is lost uses nothing
                manifests.append((await self.named(head, name)).manifest)
        return {entry.home for one in manifests for entry in one} - {""}


def is_due(session: str, num_segments: int) -> bool:
    """Ever more rarely, as a head names every segment: after each sixteenth to eighth of them.

    Each session has its own turn: a hundred that walk in step would else write all of theirs in one
    moment, and every frame would wait.
    """
    every = max(keys.HEAD_EVERY, 1 << max(0, num_segments.bit_length() - 4))
    return (num_segments + zlib.crc32(session.encode())) % every == 0


def head_path(session: str, name: str) -> str:
    return f"sessions/{session}/heads/{name}{SUFFIX}"


def snapshot_path(session: str, name: str) -> str:
    return f"sessions/{session}/snapshots/{name}{SUFFIX}"


def _head(
    session: Session,
    manifest: list[ManifestEntry],
    names: Mapping[bytes, bytes],
    init: Init | None,
) -> Head:
    spec = {name: getattr(session, name) for name in NewSession.model_fields}
    return Head(
        session=session.id,
        version=session.version,
        spec=NewSession(**spec),
        branch=session.branch,
        branch_first_frame=session.branch_first_frame,
        weights=session.weights,
        num_points=session.num_points,
        world_bytes=session.num_bytes,
        manifest=manifest,
        names={one.decode(): Name.model_validate_json(value) for one, value in names.items()},
        init=init,
        init_request=session.init_request,
        created_s=session.created_s,
    )
