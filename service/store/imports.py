"""A World out of a file that anybody may have made: every byte of it is checked before it counts.

How: the tar is read as it arrives, one member after the other, each of them named and sized as
`world.json`, the first one, says. A segment is stored once its checksum, its table, its place in
the chain and its pictures agree with that; the session exists only after the last. What an import
that fails has stored is removed. What the tensors mean only a worker can judge: it restores the
World before it makes a frame, and refuses one that is none. A few are read at a time, as each may
hold hundreds of megabytes, and one of an owner; others wait unread, so who sends too slowly is
refused.
"""

from __future__ import annotations

import asyncio
import io
import re
import tarfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
from typing import Any
from weakref import WeakValueDictionary

from PIL import Image
from pydantic import ValidationError
from pydantic_core import from_json
from safetensors import SafetensorError, deserialize

from service.auth.audit import audit
from service.control import keys
from service.control.branches import SNAPSHOT_NAME
from service.control.frames import MANIFEST, ManifestEntry
from service.control.heads import Head, Heads
from service.control.sessions import Intrinsics, Session, Sessions, is_session_id, new_session_id
from service.errors import FieldProblem, InvalidUpload, SegmentCorrupt
from service.limits import MAX_IMPORTS, MAX_INTEGER
from service.settings import Settings
from service.store.bounds import MAX_TEXT, MAX_TIME_S, FrameBounds, SpecBounds
from service.store.exports import BLOCK, WORLD, member_name
from service.store.objects import sha256
from service.store.segments import SEGMENT_ID, SegmentHeader, SegmentStore, parse_segment
from service.tasks import end
from service.uploads.parts import excess

MAX_WORLD_BYTES = 64 << 20  # world.json: 240 to 300 bytes for each of the most segments
MAX_SEGMENT_BYTES = 256 << 20
MAX_SEGMENTS = 200_000
MAX_BRANCH = 2**31
NAME = re.compile(SNAPSHOT_NAME)
PART = 1000  # entries of a manifest that are checked without a pause for other threads
PATIENCE_S, MIN_BYTES_PER_S = 30.0, 64 << 10  # of what is sent; our own work does not count
FORMATS = {"image/webp": "WEBP", "image/jpeg": "JPEG"}


class Imports:
    def __init__(
        self, store: SegmentStore, sessions: Sessions, heads: Heads, settings: Settings
    ) -> None:
        self._store, self._sessions, self._heads = store, sessions, heads
        self._max_bytes = settings.max_import_bytes
        self._frame_size = settings.frame_width, settings.frame_height
        self._turns = asyncio.Semaphore(MAX_IMPORTS)
        self._owners: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def read(
        self,
        chunks: AsyncIterator[bytes],
        owner: str = "",
        max_sessions: int | None = None,
        session: str | None = None,
    ) -> Session:
        """A new session of `owner`, who may have so many, from the bytes of an export; under this
        id if one is given.

        Raises InvalidUpload, TooManyRequests, StoreDown, Unavailable.
        """
        async with self._turn_of(owner), self._turns:
            return await self._read(chunks, owner, max_sessions, session or new_session_id())

    def _turn_of(self, owner: str) -> AbstractAsyncContextManager[Any]:
        """One owner's follow each other, so that who sends slowly leaves room for others; "" is
        everybody.
        """
        return self._owners.setdefault(owner, asyncio.Lock()) if owner else nullcontext()

    async def _read(
        self, chunks: AsyncIterator[bytes], owner: str, max_sessions: int | None, session: str
    ) -> Session:
        await self._sessions.check_room(owner, max_sessions)
        members = Members(chunks, self._max_bytes)
        head = await asyncio.to_thread(parse_world, await members.next(WORLD, MAX_WORLD_BYTES))
        _check_frame_size(head.spec.intrinsics, *self._frame_size)
        await self._sessions.reserve(session, owner, max_sessions)
        keeping = asyncio.create_task(self._sessions.keep_reserved(session))
        done = False
        try:
            await self._store_segments(session, head, members)
            await members.end()
            await self._adopt(session, head, owner)
            done = True
        finally:  # however it ended
            await end([keeping])
            if not done:
                await self._sessions.abandon(session, owner)
        audit("session imported", session=session, source=head.session)
        return await self._sessions.get(session)

    async def _store_segments(self, session: str, head: Head, members: Members) -> None:
        parent = ""
        for index, entry in enumerate(head.manifest):
            data = await members.next(member_name(index), MAX_SEGMENT_BYTES)
            await asyncio.to_thread(check_segment, head, index, parent, data)
            await self._store.put(session, entry.id, data)
            parent = entry.id

    async def _adopt(self, session: str, head: Head, owner: str) -> None:
        spec = head.spec.model_copy(update={"owner": owner, "origin": f"import:{head.session}"})
        now = time.time()
        place = {"session": session, "spec": spec, "version": 1, "created_s": now, "written_s": now}
        new = head.model_copy(update=place)
        names = {}
        for name in head.names.values():
            saved = await self._heads.put_snapshot(new.cut(name.num_segments))
            names[name.name] = name.model_copy(update={"head": saved})
        new = new.model_copy(update={"names": names})
        await self._heads.write(new)
        await self._sessions.adopt(new)


class Members:
    """The members of a tar as they arrive, nothing but plain files, and no more than a limit."""

    def __init__(self, chunks: AsyncIterator[bytes], max_bytes: int) -> None:
        self._chunks, self._max_bytes = chunks, max_bytes
        self._num_bytes, self._waited_s = 0, 0.0
        self._buffer = bytearray()

    async def next(self, name: str, most: int) -> bytes:
        """The bytes of the next member, which has to be this one."""
        head = await self._take(BLOCK, name)
        try:
            info = tarfile.TarInfo.frombuf(head, "ascii", "strict")
        except (tarfile.HeaderError, ValueError) as error:
            raise refused(name, f"{head[:24]!r}...", f"a header of a tar file ({error})") from None
        if info.name != name or info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            raise refused(name, f"{info.name!r} of type {info.type!r}", f"the plain file {name}")
        if not 0 < info.size <= most:
            raise refused(name, f"{info.size:,} bytes", f"1 to {most:,} bytes")
        data = await self._take(info.size, name)
        await self._take(-info.size % BLOCK, name)
        return data

    async def end(self) -> None:
        """Two empty blocks, and then nothing but padding."""
        if any(await self._take(2 * BLOCK, "the end")):
            raise refused("the end", "another member", "two empty blocks")
        while self._buffer or await self._more():
            if any(self._buffer):
                raise refused("the end", "more data", "nothing but padding")
            self._buffer.clear()

    async def _take(self, size: int, name: str) -> bytes:
        while len(self._buffer) < size:
            if not await self._more():
                seen = f"{len(self._buffer):,} bytes"
                raise refused(name, f"the end of the file after {seen}", f"{size:,} bytes")
        with memoryview(self._buffer) as view:
            taken = bytes(view[:size])
        del self._buffer[:size]
        return taken

    async def _more(self) -> bool:
        while (chunk := await self._next()) is not None:
            self._num_bytes += len(chunk)
            if self._num_bytes > self._max_bytes:
                raise refused(
                    "file", "more than is allowed", "a file within MIRAGE_MAX_IMPORT_BYTES"
                )
            self._buffer += chunk
            if chunk:
                return True
        return False

    async def _next(self) -> bytes | None:
        """What arrives next, None at the end."""
        allowed_s = PATIENCE_S + self._num_bytes / MIN_BYTES_PER_S
        started_s = time.monotonic()
        try:
            async with asyncio.timeout(allowed_s - self._waited_s):
                chunk = await anext(self._chunks, None)
        except TimeoutError:
            seen = f"{self._num_bytes:,} bytes in {allowed_s:.0f} s"
            raise refused("file", seen, f"{MIN_BYTES_PER_S:,} bytes a second or more") from None
        self._waited_s += time.monotonic() - started_s
        return chunk


def refused(field: str, seen: str, allowed: str) -> InvalidUpload:
    problem = FieldProblem(field, seen, allowed)
    return InvalidUpload(
        f"The file can't be imported: {field} is {seen}, expected {allowed}.", fields=(problem,)
    )


def parse_world(data: bytes) -> Head:
    """`world.json`; raises InvalidUpload. Takes seconds for the longest, on a thread."""
    try:
        world = from_json(data)
    except ValueError as error:
        raise refused(WORLD, str(error)[:100], "JSON") from None
    entries = world.pop("manifest", []) if isinstance(world, dict) else []
    with _refusing(WORLD):
        head = Head.model_validate(world, strict=True)
    _check_texts(head)
    with _refusing(f"{WORLD}: spec"):
        SpecBounds.model_validate(head.spec.model_dump())
    head = head.model_copy(update={"manifest": _manifest(entries), "init": None})
    _check_manifest(head.manifest, head.branch)
    _check_names(head)
    _check_numbers(WORLD, head.num_points, head.world_bytes)
    if not 1 <= head.branch < MAX_BRANCH or not 0 <= head.branch_first_frame <= head.next_frame:
        seen = f"{head.branch} from frame {head.branch_first_frame}"
        raise refused(f"{WORLD}: branch", seen, "a branch that begins within the world")
    return head


def _check_texts(head: Head) -> None:
    """They go into the session's record, which is read with every request."""
    if not is_session_id(head.session):
        raise refused(f"{WORLD}: session", repr(head.session[:60]), "s and 23 hexadecimal digits")
    for field in ("weights", "init_request"):
        if len(text := getattr(head, field)) > MAX_TEXT:
            seen = f"a text of {len(text):,} characters"
            raise refused(f"{WORLD}: {field}", seen, f"at most {MAX_TEXT}")


def _check_frame_size(lens: Intrinsics, width: int, height: int) -> None:
    """A worker has to make what nobody could ask for here otherwise."""
    if lens.width * lens.height > width * height:
        seen = f"frames of {lens.width} x {lens.height} pixels"
        ours = f"{width} x {height}, MIRAGE_FRAME_WIDTH x MIRAGE_FRAME_HEIGHT"
        allowed = f"at most as many pixels as this server's have ({ours})"
        raise refused(f"{WORLD}: spec.intrinsics", seen, allowed)


def _manifest(entries: Any) -> list[ManifestEntry]:
    """In parts, between which other threads have their turn; `entries` are taken away."""
    if not isinstance(entries, list) or not 1 <= len(entries) <= MAX_SEGMENTS:
        seen = f"{len(entries)} entries" if isinstance(entries, list) else repr(entries)[:80]
        raise refused(f"{WORLD}: manifest", seen, f"1 to {MAX_SEGMENTS:,} entries")
    manifest: list[ManifestEntry] = []
    while entries:
        with _refusing(f"{WORLD}: manifest", len(manifest)):
            manifest += MANIFEST.validate_python(entries[:PART], strict=True)
        del entries[:PART]
    return manifest


@contextmanager
def _refusing(where: str, first: int = 0) -> Iterator[None]:
    """Say what pydantic found, in our words; `first`: the number of the first item of a list."""
    try:
        yield
    except ValidationError as error:
        found = error.errors(include_url=False)[0]
        path = [str(one + first if isinstance(one, int) else one) for one in found["loc"]]
        raise refused(
            ".".join([where, *path]),
            repr(found.get("input"))[:80],
            found["msg"].removeprefix("Value error, "),
        ) from None


def _check_manifest(manifest: list[ManifestEntry], branch: int) -> None:
    next_frame = 0
    for index, entry in enumerate(manifest):
        where = f"{WORLD}: manifest.{index}"
        match = SEGMENT_ID.fullmatch(entry.id)
        if match is None or int(match[1]) != index:
            raise refused(f"{where}.id", entry.id[:100], f"{index:08d}-<lease>-<sha256>")
        if entry.first_frame != next_frame or not 0 <= entry.num_frames <= 4096:
            seen = f"{entry.num_frames} frames from {entry.first_frame} on"
            raise refused(where, seen, f"frames from {next_frame} on")
        if not 1 <= entry.branch <= branch:
            raise refused(f"{where}.branch", str(entry.branch)[:30], "1 to the world's")
        if entry.home:
            raise refused(f"{where}.home", entry.home[:100], "nothing")
        _check_numbers(where, entry.num_points, entry.world_bytes)
        next_frame = entry.next_frame


def _check_numbers(where: str, *numbers: int) -> None:
    """What is passed on to clients unchanged has to fit into every notation."""
    for number in numbers:
        if not 0 <= number < MAX_INTEGER:
            raise refused(where, f"a size of {str(number)[:30]}", f"0 to {MAX_INTEGER - 1}")


def _check_names(head: Head) -> None:
    if len(head.names) > keys.MAX_SNAPSHOTS:
        raise refused(f"{WORLD}: names", f"{len(head.names)}", f"at most {keys.MAX_SNAPSHOTS}")
    ids = [entry.id for entry in head.manifest]
    for key, name in head.names.items():
        where = f"{WORLD}: names.{key[:64]}"
        if key != name.name or not NAME.fullmatch(key):
            raise refused(where, name.name[:64], "letters, digits, spaces and _ . : -")
        if not 1 <= name.num_segments <= len(ids) or ids[name.num_segments - 1] != name.tip:
            seen = f"{name.num_segments} segments up to {name.tip[:100]}"
            raise refused(where, seen, "a place in the manifest")
        _check_numbers(where, name.branch, name.num_frames)
        if not 0 <= name.created_s < MAX_TIME_S:
            raise refused(where, f"{name.created_s} s", f"a time from 0 to {MAX_TIME_S} s")


def check_segment(head: Head, index: int, parent: str, data: bytes) -> None:
    """Raise InvalidUpload unless these bytes are what the manifest has at this place."""
    entry, name = head.manifest[index], member_name(index)
    if len(data) != entry.num_bytes or sha256(data) != entry.id.rpartition("-")[2]:
        seen = f"{len(data):,} bytes with checksum {sha256(data)}"
        raise refused(name, seen, f"{entry.num_bytes:,} bytes of {entry.id}")
    try:
        header, images = parse_segment(data)  # first: it bounds what the library may have to parse
        deserialize(data)
    except (SafetensorError, SegmentCorrupt) as error:
        raise refused(name, str(error)[:200], "a segment") from None
    _check_header(head, entry, header, index, parent, name)
    for frame, image in zip(header.frames, images, strict=True):
        _check_image(head, image, frame.media_type, f"{name}: frame {frame.frame}")


def _check_header(
    head: Head, entry: ManifestEntry, header: SegmentHeader, index: int, parent: str, name: str
) -> None:
    numbers = list(range(entry.first_frame, entry.next_frame))
    lens = head.spec.intrinsics.model_dump()
    facts = {
        "index": (header.index, index),
        "parent": (header.parent, parent),
        "kind": (header.kind, entry.kind),
        "branch": (header.branch, entry.branch),
        "weights": (header.weights, head.weights),
        "intrinsics": (header.intrinsics, lens),
        "frame_indices": (header.frame_indices, numbers),
        "frames": ([frame.frame for frame in header.frames], numbers),
    }
    for fact, (seen, expected) in facts.items():
        if seen != expected:
            raise refused(f"{name}: {fact}", repr(seen)[:100], repr(expected)[:100])
    for frame in header.frames:
        where = f"{name}: frame {frame.frame}"
        if frame.branch != entry.branch:
            raise refused(f"{where}: branch", str(frame.branch)[:30], str(entry.branch))
        with _refusing(where):
            FrameBounds.model_validate(frame.model_dump())


def _check_image(head: Head, image: bytes, media_type: str, where: str) -> None:
    """Its kind, size and parts, undecoded: a frame is sent to clients as it is."""
    lens = head.spec.intrinsics
    if found := excess(image):
        raise refused(where, *found)
    try:
        with Image.open(io.BytesIO(image), formats=[FORMATS[media_type]]) as picture:
            size = picture.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise refused(where, str(error)[:100], f"a picture of type {media_type}") from None
    if size != (lens.width, lens.height):
        raise refused(where, f"{size[0]} x {size[1]} pixels", f"{lens.width} x {lens.height}")
