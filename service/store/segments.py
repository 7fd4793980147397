"""The segment store: immutable objects in a directory or a bucket, named by what they contain.

A segment is a safetensors file whose metadata holds a JSON header, so that the gateway reads frames
out of it without torch. Its id is index + lease + sha256 of the whole file: an orphan left by a
crash never stands in its successor's way, every read is verified, and since each header names its
parent, a tip vouches for the whole World.
"""

from __future__ import annotations

import io
import json
import math
import re
import struct
import time
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.errors import SegmentCorrupt, StoreDown
from service.store.objects import ObjectStore, sha256

FRAMES = "frames"  # uint8, every encoded image one after the other
COLOURS = "colours"  # (t, h, w, 3) uint8, cells of an observation that is not among the frames
SIZES = "frame_sizes"  # int64, bytes of each
SUFFIX = ".safetensors"
MAX_TABLE_BYTES = 1 << 20  # ours have about 1,000 for each of at most 64 frames, and 2,000
SEGMENT_ID = re.compile(r"(\d{8})-[\w.]{1,64}-([0-9a-f]{64})", re.ASCII)
Kind = Annotated[str, Field(pattern=r"^(init|observe|generate|live)$")]  # of request
PLANES = ("coverage", "depth")  # (t, h, w) on the latent grid
DTYPES = {  # in safetensors' words and numpy's
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I8": "|i1", "U8": "|u1",
    "BF16": "<u2",  # its bits: numpy has no such type
}  # fmt: skip
# What a table of anything but the expected shape raises, one nested too deep among them
PARSE_ERRORS = (struct.error, KeyError, TypeError, ValueError, ValidationError, RecursionError)
# What numpy and zipfile raise for a file that is cut, encrypted or packed in another way
UPLOAD_ERRORS = (
    ValueError, TypeError, KeyError, OSError, EOFError, RuntimeError, struct.error, zlib.error,
    zipfile.BadZipFile,
)  # fmt: skip


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
    kind: Kind
    pose_index: int = 0  # which pose of its request
    sequence: int | None = None  # a live pose's own number
    client_time_ms: float | None = None
    timings_ms: dict[str, float] = {}
    media_type: str = Field(pattern=r"^image/(webp|jpeg)$")
    created_s: float


class SegmentHeader(BaseModel):
    """The JSON header of a segment."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    session: str
    index: int
    parent: str  # id of the segment before, "" for the first
    kind: Kind
    weights: str
    branch: int
    frame_indices: list[int]
    frames: list[FrameMeta]
    intrinsics: dict[str, float]
    created_s: float


def segment_id(index: int, lease: str, data: bytes) -> str:
    return f"{index:08d}-{lease}-{sha256(data)}"


def parse_segment(data: bytes) -> tuple[SegmentHeader, list[bytes]]:
    """A segment's header and encoded frames, with numpy alone. Raises SegmentCorrupt."""
    try:
        table, body = _opened(data)
        header = SegmentHeader.model_validate_json(_only_header(table["__metadata__"]))
        sizes = np.frombuffer(_tensor(table, body, SIZES), dtype="<i8")
        frames = bytes(_tensor(table, body, FRAMES))
    except PARSE_ERRORS as error:
        raise SegmentCorrupt(f"a segment can't be parsed: {error}") from error
    _check_sizes(sizes, len(frames), len(header.frames))
    ends = np.cumsum(sizes).tolist()
    return header, [frames[end - size : end] for end, size in zip(ends, sizes, strict=True)]


def _check_sizes(sizes: NDArray[np.int64], num_bytes: int, num_frames: int) -> None:
    """Each bounded before they are added, as a sum may wrap around."""
    if len(sizes) != num_frames:
        raise SegmentCorrupt(f"a segment holds {len(sizes)} pictures of {num_frames} frames")
    if np.any((sizes < 0) | (sizes > num_bytes)) or sizes.sum() != num_bytes:
        raise SegmentCorrupt(f"a segment's {SIZES} don't add up to its {num_bytes} bytes")


def read_planes(data: bytes) -> dict[tuple[int, int], dict[str, NDArray[np.float32]]]:
    """(Branch, frame) -> "coverage" (share that memory knew) and "depth" (metres), each (h, w) on
    the latent grid; what a segment has not got is left out. Raises SegmentCorrupt.
    """
    header, _ = parse_segment(data)
    stored = read_arrays(data, PLANES)
    for name, values in stored.items():
        if values.dtype.kind != "f" or values.ndim != 3 or len(values) < len(header.frames):
            raise SegmentCorrupt(f"a segment's planes can't be read: {name} is {values.shape}")
    return {
        (frame.branch, frame.frame): {
            name: values[i].astype(np.float32) for name, values in stored.items()
        }
        for i, frame in enumerate(header.frames)
    }


def read_arrays(data: bytes, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Those of the named tensors that a segment has; not to be written to, and bfloat16 as its
    bits. Raises SegmentCorrupt.
    """
    try:
        table, body = _opened(data)
        return {name: _array(table, body, name) for name in names if name in table}
    except PARSE_ERRORS as error:
        raise SegmentCorrupt(f"a segment's tensors can't be read: {error}") from error


def _opened(data: bytes) -> tuple[dict[str, Any], memoryview]:
    """The table and what lies behind it; a table is parsed in one go, while all else waits."""
    (length,) = struct.unpack("<Q", data[:8])
    if length > MAX_TABLE_BYTES:
        raise SegmentCorrupt(
            f"a segment's table has {length:,} bytes, expected at most {MAX_TABLE_BYTES:,}"
        )
    return json.loads(data[8 : 8 + length]), memoryview(data)[8 + length :]


def _only_header(metadata: Mapping[str, str]) -> str:
    if others := sorted(set(metadata) - {"header"}):
        raise SegmentCorrupt(f"a segment has metadata {others[0][:80]!r}, expected only 'header'")
    return metadata["header"]


def _array(table: Mapping[str, Any], body: memoryview, name: str) -> NDArray[Any]:
    values = np.frombuffer(_tensor(table, body, name), DTYPES[table[name]["dtype"]])
    return values.reshape(table[name]["shape"])


def _tensor(table: Mapping[str, Any], body: memoryview, name: str) -> memoryview:
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
    except UPLOAD_ERRORS as error:
        raise SegmentCorrupt(f"a stored upload can't be read: {error}") from error


class SegmentStore:
    """Objects under `sessions/<id>/`: segments and uploaded blobs. Every error is a SegmentError or
    StoreDown.
    """

    def __init__(self, url: str, objects: type[ObjectStore] = ObjectStore) -> None:
        """`url`: file:///absolute/path (created if missing), s3://, gs://, az:// or memory:///."""
        self.objects = objects(url)
        self._pinged_s = -math.inf  # when it was last seen to work

    @property
    def is_local(self) -> bool:
        """Whether a put is a matter of microseconds."""
        return self.objects.folder is not None

    async def ping(self, kept_s: float = 0.0) -> None:
        """Write and remove a small object, unless one was `kept_s` ago; raises StoreDown."""
        if time.monotonic() - self._pinged_s < kept_s:
            return
        path = f"ping/{time.time_ns()}"
        await self.objects.put(path, b"ping")
        await self.objects.delete([path])
        self._pinged_s = time.monotonic()

    async def put(self, session: str, segment: str, data: bytes) -> None:
        """Store a segment under the id that `segment_id` gave it."""
        await self.objects.put(segment_path(session, segment), data)

    async def put_all(self, segments: Sequence[tuple[str, str, bytes]]) -> list[StoreDown | None]:
        """Store (session, segment, data) each as `put` does; what it raises for each, or None."""
        named = [(segment_path(session, name), data) for session, name, data in segments]
        return await self.objects.put_all(named)

    async def get(self, session: str, segment: str) -> bytes:
        """The verified bytes of a segment; raises SegmentMissing, SegmentCorrupt."""
        path = segment_path(session, segment)
        return await self.objects.read_verified(path, segment.rpartition("-")[2])

    async def put_upload(self, session: str, upload: Upload) -> str:
        """Store a blob; its id is its checksum, so the same upload twice is stored once."""
        data = pack_upload(upload)
        blob = sha256(data)
        await self.objects.put(blob_path(session, blob), data)
        return blob

    async def get_upload(self, session: str, blob: str) -> Upload:
        """Raises SegmentMissing, SegmentCorrupt."""
        return unpack_upload(await self.objects.read_verified(blob_path(session, blob), blob))

    async def ids(self, session: str) -> list[str]:
        """Ids of all segments that lie in the store, orphans among them, in order of index."""
        return await self.objects.names(f"sessions/{session}/segments", SEGMENT_ID, SUFFIX)


def segment_path(session: str, segment: str) -> str:
    return f"sessions/{session}/segments/{segment}{SUFFIX}"


def blob_path(session: str, blob: str) -> str:
    return f"sessions/{session}/blobs/{blob}.npz"
