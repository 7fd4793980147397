"""Every parser of what strangers send, as a function of bytes; anything but our own errors escapes.

Each has seeds, files that are good, so that a fuzzer begins inside. Limits are those of a small
server: an input that makes a parser allocate beyond them shows as memory.
"""

from __future__ import annotations

import asyncio
import io
import json
import random
import tarfile
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import parse_qsl

import numpy as np
from PIL import Image
from pydantic import ValidationError
from safetensors.numpy import save
from starlette.exceptions import HTTPException
from trees import EXPORT, JSON, PACKED, Form, changed
from trees import SEGMENT as TABLE
from uploads_made import encoded, npy, png

from service.auth.keyring import parse_credential
from service.control.frames import ManifestEntry
from service.control.heads import Head, pack, unpack
from service.control.sessions import Intrinsics, NewSession
from service.errors import MirageError
from service.poses import flat
from service.rest.preconditions import version_of
from service.rest.ranges import ranged
from service.schemas import PathIn
from service.store.exports import WORLD, member_name
from service.store.imports import Members, check_segment, parse_world
from service.store.objects import sha256
from service.store.segments import (
    FRAMES,
    SIZES,
    FrameMeta,
    SegmentHeader,
    Upload,
    pack_upload,
    parse_segment,
    read_planes,
    unpack_upload,
)
from service.stream.messages import PathMessage, PoseMessage, from_bytes, from_text
from service.uploads.depth_maps import decode_depth
from service.uploads.images import decode_image
from service.uploads.masks import decode_mask
from service.uploads.pictures import UploadLimits
from service.wire import world_pb2 as pb
from service.words import parse_actions
from service.ws import opening_of

LIMITS = UploadLimits(max_bytes=1 << 20, max_pixels=1 << 18)
IDENTITY = np.eye(4)
SESSION = f"s{0:023x}"
PLAIN = Image.new("RGB", (96, 64), (200, 30, 60))


def image(data: bytes) -> None:
    decode_image(data, LIMITS)


def depth(data: bytes) -> None:
    decode_depth(data, LIMITS, 96, 64)


def mask(data: bytes) -> None:
    decode_mask(data, LIMITS, 96, 64)


def path(data: bytes) -> None:
    with suppress(ValidationError):
        PathIn.model_validate_json(data).flat_poses(IDENTITY, 64)


def words(data: bytes) -> None:
    parse_actions(data.decode(errors="replace"))


def stream_text(data: bytes) -> None:
    use(from_text(data.decode(errors="replace")))


def stream_proto(data: bytes) -> None:
    use(from_bytes(data, 1024))


def export(data: bytes) -> None:
    """A whole file, as it arrives."""
    asyncio.run(read_export(data))


def world(data: bytes) -> None:
    parse_world(data)


def segment(data: bytes) -> None:
    parse_segment(data)


def planes(data: bytes) -> None:
    read_planes(data)


def stored_upload(data: bytes) -> None:
    """Of our own store, which may be damaged."""
    unpack_upload(data)


def head(data: bytes) -> None:
    unpack(data)


def opening(data: bytes) -> None:
    """A stream's address."""
    opening_of("s1", parse_qsl(data.decode("latin-1"), keep_blank_values=True))


def if_match(data: bytes) -> None:
    version_of(data.decode("latin-1"))


def range_header(data: bytes) -> None:
    with suppress(HTTPException):
        ranged(b"0123456789", "video/mp4", {}, data.decode("latin-1"), None)


def credential(data: bytes) -> None:
    parse_credential(data.decode("latin-1"))


def use(message: object) -> None:
    """As far as a message goes before it is in the log."""
    if isinstance(message, PoseMessage):
        message.pose(message.axes, "pose")
    elif isinstance(message, PathMessage):
        message.flat_poses(IDENTITY, 64)


async def read_export(data: bytes) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(data), 1000):
            yield data[start : start + 1000]

    members = Members(chunks(), 1 << 20)
    head = parse_world(await members.next(WORLD, 1 << 16))
    for index in range(len(head.manifest)):
        part = await members.next(member_name(index), 1 << 18)
        check_segment(head, index, "", part)
    await members.end()


def small_export() -> tuple[bytes, bytes, bytes, bytes, bytes]:
    """A file of one frame: its world.json, its segment, all of it, and a segment with planes and
    one of two frames.
    """
    lens = Intrinsics(fx=50, fy=50, cx=32, cy=16, width=64, height=32)
    picture = encoded(PLAIN.resize((64, 32)), "WEBP")
    meta = FrameMeta(
        frame=0, branch=1, pose=flat(IDENTITY), coverage=0.5, request_id="r_1", kind="init",
        media_type="image/webp", created_s=1.0,
    )  # fmt: skip
    header = SegmentHeader(
        session="s1", index=0, parent="", kind="init", weights="w@0", branch=1, frame_indices=[0],
        frames=[meta], intrinsics=lens.model_dump(), created_s=1.0,
    )  # fmt: skip
    tensors = {FRAMES: np.frombuffer(picture, np.uint8), SIZES: np.array([len(picture)])}
    part = save(tensors, metadata={"header": header.model_dump_json()})
    seen = {"coverage": np.ones((1, 4, 8), np.float32), "depth": np.ones((1, 4, 8), np.float16)}
    with_planes = save(tensors | seen, metadata={"header": header.model_dump_json()})
    tensors[SIZES] = np.array([len(picture) - 1, 1])
    two = header.model_copy(update={"frames": [meta, meta], "frame_indices": [0, 1]})
    split = save(tensors, metadata={"header": two.model_dump_json()})
    entry = ManifestEntry(
        id=f"{0:08d}-w1.1-{sha256(part)}", kind="init", branch=1, first_frame=0, num_frames=1,
        num_bytes=len(part),
    )  # fmt: skip
    head = Head(
        session=SESSION, version=1, spec=NewSession(intrinsics=lens), weights="w@0",
        manifest=[entry], init_request="r_1", created_s=1.0,
    )  # fmt: skip
    document = head.model_dump_json().encode()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in ((WORLD, document), (member_name(0), part)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return document, part, buffer.getvalue(), with_planes, split


def protos() -> tuple[bytes, ...]:
    pose = pb.Pose(position=[0, 1, 2], quaternion=[0, 0, 0, 1])
    messages = (
        pb.ClientMessage(sequence=3, ping=pb.Ping()),
        pb.ClientMessage(pose=pb.LivePose(pose=pose, camera=2)),
        pb.ClientMessage(path=pb.Path(poses=[pose, pb.Pose(matrix=flat(IDENTITY))])),
        pb.ClientMessage(path=pb.Path(actions=[pb.Action(forward_m=1.5, yaw_deg=30)])),
        pb.ClientMessage(cancel=pb.Cancel(id="r_1")),
    )
    return tuple(message.SerializeToString() for message in messages)


@dataclass(frozen=True)
class Target:
    parse: Callable[[bytes], None]
    seeds: tuple[bytes, ...]
    form: Form | None = None  # of the JSON within

    def __call__(self, data: bytes) -> None:
        """Raises whatever is not an answer to a client."""
        with suppress(MirageError):
            self.parse(data)

    def changed(self, data: bytes, rng: random.Random) -> bytes | None:
        """Another file of this form; None where there is none or it is too damaged."""
        return None if self.form is None else changed(self.form, data, rng)


PATHS = (
    {"poses": [{"matrix": flat(IDENTITY)}] * 2, "axes": "unity"},
    {"poses": [{"position": [0, 1, 2], "quaternion": [0, 0, 0, 1]}], "axes": "ros", "camera": 3},
    {"actions": [{"forward_m": 1.5, "yaw_deg": -30}], "step_m": 0.2},
)
MESSAGES = (
    {"type": "pose", "matrix": flat(IDENTITY), "sequence": 4, "client_time_ms": 1.5},
    {"type": "path"} | PATHS[1],
    {"type": "cancel", "id": "r_1"},
    {"type": "ping"},
)
WORLD_JSON, SEGMENT, FILE, PLANES, SPLIT = small_export()
DEPTH = np.full((64, 96), 2.5, np.float32)
PIXELS = np.zeros((64, 96, 3), np.uint8)
MILLIMETRES = encoded(Image.fromarray(np.full((64, 96), 2500, np.uint16)), "PNG")
PROGRESSIVE = encoded(PLAIN, "JPEG", progressive=True)
PICTURES = (
    encoded(PLAIN, "PNG"),
    encoded(PLAIN, "JPEG"),
    PROGRESSIVE,
    encoded(PLAIN, "WEBP"),
    png(40, 32),
)
TARGETS = {
    "image": Target(image, PICTURES),
    "depth": Target(depth, (npy(DEPTH), npy(np.asfortranarray(DEPTH)), MILLIMETRES)),
    "mask": Target(mask, (encoded(PLAIN.convert("L"), "PNG"), encoded(PLAIN, "WEBP"))),
    "path": Target(path, tuple(json.dumps(one).encode() for one in PATHS), JSON),
    "words": Target(words, (b"forward 1.5, yaw -30,left 0.2 , back 1",)),
    "stream_text": Target(stream_text, tuple(json.dumps(one).encode() for one in MESSAGES), JSON),
    "stream_proto": Target(stream_proto, protos()),
    "world": Target(world, (WORLD_JSON,), JSON),
    "segment": Target(segment, (SEGMENT, SPLIT), TABLE),
    "planes": Target(planes, (SEGMENT, PLANES), TABLE),
    "export": Target(export, (FILE,), EXPORT),
    "head": Target(head, (pack(Head.model_validate_json(WORLD_JSON)),), PACKED),
    "stored_upload": Target(stored_upload, (pack_upload(Upload(PIXELS, DEPTH, DEPTH > 1)),)),
    "opening": Target(opening, (b"after=3&format=h264&cameras=0,2&planes=depth&frames_per_s=9.5",)),
    "if_match": Target(if_match, (b'"3"', b"*")),
    "range_header": Target(range_header, (b"bytes=0-9", b"bytes=-5")),
    "credential": Target(credential, (b"mk_000000000000_" + b"a" * 43,)),
}
