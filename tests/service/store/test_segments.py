"""The segment store on a real directory."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save

from service.errors import ConfigurationError, SegmentCorrupt, SegmentMissing, StoreDown
from service.store import objects
from service.store.segments import (
    FRAMES,
    MAX_TABLE_BYTES,
    SIZES,
    FrameMeta,
    SegmentHeader,
    SegmentStore,
    Upload,
    pack_upload,
    parse_segment,
    read_arrays,
    read_planes,
    segment_id,
    unpack_upload,
)

UPLOAD = Upload(np.arange(24, dtype=np.uint8).reshape(2, 4, 3), np.ones((2, 4), np.float32), None)


@pytest.fixture
def store(tmp_path: Path) -> SegmentStore:
    return SegmentStore(tmp_path.as_uri() + "/segments")


def segment(
    sizes: list[int], num_bytes: int, num_frames: int | None = None, **planes: NDArray[np.float16]
) -> bytes:
    """Of as many frames as there are sizes, if not said otherwise."""
    numbers = list(range(len(sizes) if num_frames is None else num_frames))
    frames = [
        FrameMeta(
            frame=number, branch=1, pose=[0.0] * 16, coverage=0, request_id="r", kind="init",
            media_type="image/webp", created_s=0,
        )
        for number in numbers
    ]  # fmt: skip
    header = SegmentHeader(
        session="s", index=0, parent="", kind="init", weights="w@0", branch=1,
        frame_indices=numbers, frames=frames, intrinsics={}, created_s=0,
    )  # fmt: skip
    tensors = {FRAMES: np.zeros(num_bytes, np.uint8), SIZES: np.array(sizes, np.int64)}
    return save(tensors | planes, metadata={"header": header.model_dump_json()})


def find(folder: Path, pattern: str) -> list[Path]:
    return list(folder.rglob(pattern))


def damage(folder: Path) -> None:
    (path,) = find(folder, "*.safetensors")
    path.write_bytes(b"dat4")


async def test_what_is_put_is_what_comes_back(store: SegmentStore) -> None:
    name = segment_id(3, "w1.2", b"data")
    assert name.startswith("00000003-w1.2-")
    await store.put("s", name, b"data")
    assert await store.get("s", name) == b"data"
    assert await store.ids("s") == [name]


async def test_segments_of_two_leases_stand_side_by_side(store: SegmentStore) -> None:
    """An orphan of a crashed worker never blocks its successor."""
    names = [segment_id(0, lease, b"same") for lease in ("w1.1", "w2.1")]
    for name in names:
        await store.put("s", name, b"same")
    assert await store.ids("s") == names


async def test_a_missing_and_a_damaged_segment_are_told_apart(
    store: SegmentStore, tmp_path: Path
) -> None:
    name = segment_id(0, "w1.1", b"data")
    with pytest.raises(SegmentMissing, match=name):
        await store.get("s", name)
    await store.put("s", name, b"data")
    damage(tmp_path)
    with pytest.raises(SegmentCorrupt, match="checksum"):
        await store.get("s", name)


async def test_deleting_leaves_no_object_and_no_directory(
    store: SegmentStore, tmp_path: Path
) -> None:
    await store.put_upload("s", UPLOAD)
    await store.put("s", segment_id(0, "w1.1", b"x"), b"x")
    kept = segment_id(0, "w1.1", b"y")
    await store.put("other", kept, b"y")
    paths = [one.path for one in await store.objects.below("sessions/s")]
    assert len(paths) == 2
    await store.objects.delete(paths)
    await store.objects.delete(paths)  # twice is harmless
    assert await store.ids("other") == [kept]
    assert find(tmp_path, "sessions/s") == []


async def test_strays_of_a_file_system_are_no_segments(store: SegmentStore, tmp_path: Path) -> None:
    name = segment_id(0, "w1.1", b"x")
    await store.put("s", name, b"x")
    (folder,) = find(tmp_path, "segments/sessions/s/segments")
    for stray in (".nfs0001", ".DS_Store", f".{name}.safetensors.Xy12Zz", f"{name}~", name, "~"):
        (folder / stray).write_bytes(b"stray")
    assert await store.ids("s") == [name]


async def test_the_same_upload_is_one_blob(store: SegmentStore) -> None:
    blob = await store.put_upload("s", UPLOAD)
    assert await store.put_upload("s", UPLOAD) == blob
    found = await store.get_upload("s", blob)
    np.testing.assert_array_equal(found.image, UPLOAD.image)
    np.testing.assert_array_equal(found.depth, UPLOAD.depth)
    assert found.mask is None


def test_an_upload_never_unpickles() -> None:
    evil = Upload(np.array([[{}]], dtype=object))
    with pytest.raises(SegmentCorrupt):
        unpack_upload(pack_upload(evil))


NUMBER = b"\x01" + bytes(7) + b"0"
DEEP = b"\xff" * 2 + bytes(6) + b"[" * 65535


@pytest.mark.parametrize(
    "data", [b"", b"\x05", b"\x02" + bytes(7) + b"{}", b"\xff" * 40, NUMBER, DEEP]
)
def test_rubbish_is_no_segment(data: bytes) -> None:
    with pytest.raises(SegmentCorrupt):
        parse_segment(data)


@pytest.mark.parametrize(
    "sizes", [[2], [4], [4, -1], [-1, 4], [3, -3, 3], [2**62, 2**62, 2**62, 2**62, 3]]
)
def test_sizes_that_do_not_add_up_are_a_corrupt_segment(sizes: list[int]) -> None:
    """With sizes of both signs a small file would be copied any number of times."""
    assert parse_segment(segment([1, 0, 2], 3))[1] == [bytes(1), b"", bytes(2)]
    with pytest.raises(SegmentCorrupt, match="don't add up to its 3 bytes"):
        parse_segment(segment(sizes, 3))


def test_a_table_is_no_longer_than_ours_are() -> None:
    """It is parsed in one go, while all else waits."""
    data = segment([1] * 400, 400)
    assert len(parse_segment(data)[1]) == 400
    long = save({"x": np.zeros(1)}, metadata={"header": " " * MAX_TABLE_BYTES})
    for parse in (parse_segment, lambda data: read_arrays(data, ["x"])):
        with pytest.raises(SegmentCorrupt, match="expected at most 1,048,576"):
            parse(long)


def test_metadata_beside_the_header_is_a_corrupt_segment() -> None:
    data = segment([3], 3).replace(b'"header":', b'"other":1,"header":')
    length = int.from_bytes(data[:8], "little") + len(b'"other":1,')
    with pytest.raises(SegmentCorrupt, match="metadata 'other'"):
        parse_segment(struct.pack("<Q", length) + data[8:])


def test_pictures_without_a_frame_are_a_corrupt_segment() -> None:
    with pytest.raises(SegmentCorrupt, match="2 pictures of 1 frames"):
        parse_segment(segment([1, 2], 3, num_frames=1))


@pytest.mark.parametrize("data", [b"", b"PK", pack_upload(UPLOAD)[:-9], b"\x93NUMPY\x01\x00"])
def test_rubbish_is_no_upload(data: bytes) -> None:
    with pytest.raises(SegmentCorrupt):
        unpack_upload(data)


@pytest.mark.parametrize(
    ("field", "value"),
    [("dtype", "I64"), ("shape", [9, 9]), ("shape", None), ("data_offsets", [0]), ("dtype", [])],
)
def test_planes_of_another_shape_are_a_corrupt_segment(field: str, value: object) -> None:
    data = segment([3], 3, depth=np.ones((1, 2, 2), np.float16))
    assert read_planes(data)[1, 0]["depth"].shape == (2, 2)
    length = int.from_bytes(data[:8], "little")
    table = json.loads(data[8 : 8 + length])
    table["depth"][field] = value
    text = json.dumps(table).encode()
    with pytest.raises(SegmentCorrupt, match="can't be read"):
        read_planes(struct.pack("<Q", len(text)) + text + data[8 + length :])


async def test_a_store_that_cannot_be_written_says_so_and_only_the_log_says_where(
    tmp_path: Path, logs_of: Callable[..., list[Any]]
) -> None:
    store = SegmentStore(tmp_path.as_uri() + "/segments")
    await store.ping()
    (tmp_path / "segments").rmdir()
    (tmp_path / "segments").write_text("a file where the directory was")
    await store.ping(kept_s=60.0)  # it was there just now
    logs = logs_of(objects)
    for kept_s in (0.0, 1e-9):
        with pytest.raises(StoreDown) as refused:
            await store.ping(kept_s)
        assert refused.value.detail == "An object of the store can't be stored: Not a directory"
        assert logs[-1]["what"].startswith("ping/") and str(tmp_path) in logs[-1]["error"]


def test_a_url_of_no_store_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"nowhere://.*MIRAGE_STORE_URL") as caught:
        SegmentStore("nowhere://user:hunter2@bucket")
    assert "\n" not in str(caught.value) and "hunter2" not in str(caught.value)
    with pytest.raises(ConfigurationError, match="relative URL without a base"):
        SegmentStore("nowhere")
