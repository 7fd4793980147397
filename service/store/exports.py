"""A World as one file: a plain tar of `world.json` and its segments, in order.

`world.json` says what the record and the manifest say, and nothing of who owned it; the segments
are the stored ones, byte for byte, so a World that is imported elsewhere goes on with the same
bits. The file is made while it is sent: its size is known beforehand, nothing is copied.
"""

from __future__ import annotations

import asyncio
import tarfile
from collections.abc import AsyncIterator
from dataclasses import dataclass

from service.control.heads import Head, Heads
from service.errors import Conflict, SegmentCorrupt
from service.store.segments import SegmentStore

WORLD = "world.json"
BLOCK = tarfile.BLOCKSIZE
END = bytes(2 * BLOCK)
MEDIA_TYPE = "application/x-tar"


@dataclass(frozen=True)
class Export:
    """A file that is about to be written."""

    head: Head
    document: bytes
    store: SegmentStore
    source: str  # the session

    @property
    def num_bytes(self) -> int:
        sizes = [len(self.document), *(one.num_bytes for one in self.head.manifest)]
        return sum(BLOCK + size + _padding(size) for size in sizes) + len(END)

    @property
    def name(self) -> str:
        return f"{self.source}.mirage.tar"

    async def chunks(self) -> AsyncIterator[bytes]:
        """The bytes of the file; raises SegmentMissing, SegmentCorrupt, StoreDown."""
        yield _member(WORLD, self.document)
        for index, entry in enumerate(self.head.manifest):
            data = await self.store.get(entry.home or self.source, entry.id)
            if len(data) != entry.num_bytes:
                raise SegmentCorrupt(
                    f"segment {entry.id} has {len(data)} bytes, the manifest says {entry.num_bytes}"
                )
            yield _member(member_name(index), data)
        yield END


class Exports:
    def __init__(self, store: SegmentStore, heads: Heads) -> None:
        self._store, self._heads = store, heads

    async def open(self, session: str, snapshot: str | None = None) -> Export:
        """The World as it stands, or as it was named.

        Raises UnknownSession, SessionDeleted, UnknownSnapshot, Conflict (no frame yet).
        """
        head = await self._heads.current(session)
        if snapshot is not None:
            head = await self._heads.named(head, snapshot)
        if not head.manifest:
            raise Conflict(f"session {session!r} has no frame yet", retry_after_s=1.0)
        document = await asyncio.to_thread(_document, head) if head.is_long else _document(head)
        return Export(head, document, self._store, session)


def _document(head: Head) -> bytes:
    return portable(head).document()


def portable(head: Head) -> Head:
    """Without what holds only here: the owner, the places of segments, names of other branches."""
    ids = [entry.id for entry in head.manifest]
    names = {
        name: one
        for name, one in head.names.items()
        if one.num_segments <= len(ids) and ids[one.num_segments - 1] == one.tip
    }
    return head.model_copy(
        update={
            "version": 1,
            "spec": head.spec.model_copy(update={"owner": "", "origin": ""}),
            "manifest": [
                one.model_copy(update={"home": ""}) if one.home else one for one in head.manifest
            ],
            "names": names,
            "init": None,
        }
    )


def member_name(index: int) -> str:
    return f"segments/{index:08d}.safetensors"


def _member(name: str, data: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    return info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(_padding(len(data)))


def _padding(size: int) -> int:
    return -size % BLOCK
