"""The segment store: immutable objects in a directory or a bucket, named by what they contain.

A segment is a safetensors file whose metadata holds a JSON header, so that the gateway reads frames
out of it without torch. Its id is index + lease + sha256 of the whole file: an orphan left by a
crash never stands in its successor's way, every read is verified, and since each header names its
parent, a tip vouches for the whole World. Local puts are atomic (written aside, then linked) but
not fsynced: they survive the loss of a process, not of the host's power.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
import time
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import obstore
from numpy.typing import NDArray
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import from_url
from pydantic import BaseModel, ConfigDict, ValidationError

from service.errors import SegmentCorrupt, SegmentMissing, StoreDown

FRAMES = "frames"  # uint8, every encoded image one after the other
SIZES = "frame_sizes"  # int64, bytes of each


@dataclass(frozen=True)
class Upload:
    """What was seen from one camera, as the gateway normalised it."""

    image: NDArray[np.uint8]  # (H, W, 3) RGB
    depth: NDArray[np.float32] | None = None  # (H', W') z-depth in metres, 0 = unknown
    mask: NDArray[np.bool_] | None = None  # (H', W') True = do not remember (moving, sky)


class FrameMeta(BaseModel):
    """Everything a client is told about one frame, but the image."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    frame: int
    branch: int
    camera: int = 0  # of a shared World's; frames are numbered over all of them
    pose: list[float]
    coverage: float  # part of the cells that the memory covered
    num_points: int = 0  # of the World that this frame's chunk left behind
    num_bytes: int = 0
    request_id: str
    kind: Literal["init", "observe", "generate", "live"]
    pose_index: int = 0  # which pose of its request
    sequence: int | None = None  # a live pose's own number
    client_time_ms: float | None = None
    timings_ms: dict[str, float] = {}
    media_type: str
    created_s: float


class SegmentHeader(BaseModel):
    """The JSON header of a segment."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    session: str
    index: int
    parent: str  # id of the segment before, "" for the first
    kind: Literal["init", "observe", "generate", "live"]
    weights: str
    branch: int
    frame_indices: list[int]
    frames: list[FrameMeta]
    intrinsics: dict[str, float]
    created_s: float


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def segment_id(index: int, lease: str, data: bytes) -> str:
    return f"{index:08d}-{lease}-{sha256(data)}"


def parse_segment(data: bytes) -> tuple[SegmentHeader, list[bytes]]:
    """A segment's header and encoded frames, with numpy alone. Raises SegmentCorrupt."""
    try:
        (length,) = struct.unpack("<Q", data[:8])
        table = json.loads(data[8 : 8 + length])
        header = SegmentHeader.model_validate_json(table["__metadata__"]["header"])
        body = data[8 + length :]
        sizes = np.frombuffer(_tensor(table, body, SIZES), dtype="<i8")
        frames = _tensor(table, body, FRAMES)
    except (struct.error, KeyError, ValueError, ValidationError) as error:
        raise SegmentCorrupt(f"a segment can't be parsed: {error}") from error
    ends = np.cumsum(sizes).tolist()
    return header, [frames[end - size : end] for end, size in zip(ends, sizes, strict=True)]


def _tensor(table: Mapping[str, Any], body: bytes, name: str) -> bytes:
    begin, end = table[name]["data_offsets"]
    return body[begin:end]


def pack_upload(upload: Upload) -> bytes:
    """Uncompressed npz, no pickle."""
    arrays = {"image": upload.image, "depth": upload.depth, "mask": upload.mask}
    given: dict[str, Any] = {name: array for name, array in arrays.items() if array is not None}
    stream = io.BytesIO()
    np.savez(stream, **given)
    return stream.getvalue()


def unpack_upload(data: bytes) -> Upload:
    """Raises SegmentCorrupt."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
        return Upload(**found)
    except (ValueError, TypeError, OSError, zipfile.BadZipFile) as error:
        raise SegmentCorrupt(f"a stored upload can't be read: {error}") from error


class SegmentStore:
    """Objects under `sessions/<id>/`: segments and uploaded blobs. Every error is a SegmentError or
    StoreDown.
    """

    def __init__(self, url: str) -> None:
        """`url`: file:///absolute/path (created if missing), s3://, gs://, az:// or memory:///."""
        local: dict[str, Any] = (
            {"mkdir": True, "automatic_cleanup": True} if url.startswith("file:") else {}
        )
        try:
            self._store = from_url(url, **local)
        except (BaseError, ValueError, OSError) as error:
            raise StoreDown(f"the segment store {url!r} can't be opened: {error}") from error

    async def ping(self) -> None:
        """Write and remove a small object; raises StoreDown."""
        path = f"ping/{time.time_ns()}"
        await self._put(path, b"ping")
        await self._delete([path])

    async def put(self, session: str, segment: str, data: bytes) -> None:
        """Store a segment under the id that `segment_id` gave it."""
        await self._put(_segment_path(session, segment), data)

    async def get(self, session: str, segment: str) -> bytes:
        """The verified bytes of a segment; raises SegmentMissing, SegmentCorrupt."""
        return await self._get_verified(_segment_path(session, segment), segment.rpartition("-")[2])

    async def delete(self, session: str, segment: str) -> None:
        """Remove one segment, if it is there."""
        await self._delete([_segment_path(session, segment)])

    async def put_upload(self, session: str, upload: Upload) -> str:
        """Store a blob; its id is its checksum, so the same upload twice is stored once."""
        data = pack_upload(upload)
        blob = sha256(data)
        await self._put(_blob_path(session, blob), data)
        return blob

    async def get_upload(self, session: str, blob: str) -> Upload:
        """Raises SegmentMissing, SegmentCorrupt."""
        return unpack_upload(await self._get_verified(_blob_path(session, blob), blob))

    async def ids(self, session: str) -> list[str]:
        """Ids of all segments that lie in the store, orphans among them, in order of index."""
        paths = await self._list(f"sessions/{session}/segments")
        return sorted(path.rpartition("/")[2].removesuffix(".safetensors") for path in paths)

    async def delete_session(self, session: str) -> int:
        """Remove everything of a session; how many objects that were."""
        paths = await self._list(f"sessions/{session}")
        if paths:
            await self._delete(paths)
        return len(paths)

    async def _put(self, path: str, data: bytes) -> None:
        try:
            await obstore.put_async(self._store, path, data, mode="create")
        except AlreadyExistsError:
            pass  # named by its content: what lies there is what we bring
        except (BaseError, OSError) as error:
            raise StoreDown(f"{path} can't be stored: {error}", retry_after_s=1.0) from error

    async def _get_verified(self, path: str, checksum: str) -> bytes:
        try:
            answer = await obstore.get_async(self._store, path)
            data = bytes(await answer.bytes_async())
        except FileNotFoundError:
            raise SegmentMissing(f"{path} is not in the store") from None
        except (BaseError, OSError) as error:
            raise StoreDown(f"{path} can't be read: {error}", retry_after_s=1.0) from error
        if sha256(data) != checksum:
            raise SegmentCorrupt(f"{path} has checksum {sha256(data)}, its name says {checksum}")
        return data

    async def _list(self, prefix: str) -> list[str]:
        try:
            batches = [batch async for batch in obstore.list(self._store, prefix=prefix)]
        except (BaseError, OSError) as error:
            raise StoreDown(f"{prefix} can't be listed: {error}", retry_after_s=1.0) from error
        return [item["path"] for batch in batches for item in batch]

    async def _delete(self, paths: list[str]) -> None:
        for path in paths:
            try:
                await obstore.delete_async(self._store, path)
            except FileNotFoundError:
                pass
            except (BaseError, OSError) as error:
                raise StoreDown(f"{path} can't be removed: {error}") from error


def _segment_path(session: str, segment: str) -> str:
    return f"sessions/{session}/segments/{segment}.safetensors"


def _blob_path(session: str, blob: str) -> str:
    return f"sessions/{session}/blobs/{blob}.npz"
