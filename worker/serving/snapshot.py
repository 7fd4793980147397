"""Increment <-> bytes of a segment, and the encoding of frames, once.

A segment is safetensors with a JSON header, never pickle. Everything that a World needs to go on is
stored as it is in memory, bit for bit; the images only as encoded for clients, since nothing is
ever generated from them. Replaying a World's segments in order restores it.

Axis legend: t frames, H W pixels.
"""

from __future__ import annotations

import io
import json
import math
import struct
from collections.abc import Sequence
from dataclasses import fields
from functools import lru_cache
from typing import Literal

import numpy as np
import safetensors.torch
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from service.errors import SegmentCorrupt
from service.store.segments import COLOURS, FRAMES, SIZES, SegmentHeader, parse_segment
from worker.geometry import Cameras
from worker.memory.base import Delta
from worker.world import Guess, Increment

WEBP_EFFORT = 2  # of 0..6: 4 is a tenth smaller and twice as slow
DELTA = "delta."
DELTA_NAMES = {one.name: DELTA + one.name for one in fields(Delta)}
RELIEF = DELTA_NAMES["relief"]
GUESS_NAMES = {one.name: "guess." + one.name for one in fields(Guess)}
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def encode_image(pixels: NDArray[np.uint8], form: Literal["webp", "jpeg"], quality: int) -> bytes:
    """(H, W, 3) uint8 -> the bytes of an image file; the same input gives the same bytes.

    JPEG without Pillow's detours, which cost four times as much as a small picture itself.
    """
    if form == "jpeg":
        data: bytes = simplejpeg.encode_jpeg(pixels, quality, "RGB", "420")
        return data
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form, quality=quality, method=WEBP_EFFORT)
    return stream.getvalue()


def pack_segment(
    header: SegmentHeader, increment: Increment, images: list[bytes], metas: Sequence[str] = ()
) -> bytes:
    """The file of one segment; `images` are the encoded frames that `header.frames` lists, or if
    it lists none `metas`, as JSON.

    The same safetensors as the library's, written without its detours: this is done for every
    frame. Widest types first and the table padded, so that every tensor is aligned.
    """
    tensors = _tensors(increment)
    kinds = tuple([(name, one.dtype, one.shape) for name, one in tensors.items()])
    order, table, end = _layout(kinds, len(images))
    sizes = [len(image) for image in images]
    frames = _entry(FRAMES, "U8", (sum(sizes),), end, end + sum(sizes))
    named = header.model_dump_json().replace('"frames":[]', f'"frames":[{",".join(metas)}]', 1)
    about = f'"__metadata__":{{"header":{json.dumps(named)}}}'
    text = f"{{{about},{table},{frames}}}".encode()
    text += b" " * (-len(text) % 8)
    parts = [_raw(tensors[name]) for name in order]
    first = struct.pack(f"<{len(sizes)}q", *sizes)
    return b"".join([struct.pack("<Q", len(text)), text, first, *parts, *images])


def _tensors(increment: Increment) -> dict[str, Tensor]:
    """All that is kept of it, by the names in the file."""
    views, delta, guess = increment.cameras, vars(increment.delta), increment.guess
    tensors = {key: delta[name] for name, key in DELTA_NAMES.items()}
    tensors["latents"], tensors["coverage"] = increment.latents, increment.coverage
    tensors["intrinsics"] = views.intrinsics
    tensors["world_from_camera"] = views.world_from_camera
    if increment.depth is not None:
        tensors["depth"] = increment.depth
    if increment.measured is not None:
        tensors["measured"] = increment.measured
    if increment.colours is not None:
        tensors[COLOURS] = increment.colours
    if guess is not None:
        tensors |= {key: getattr(guess, name) for name, key in GUESS_NAMES.items()}
    return tensors


Kind = tuple[str, torch.dtype, tuple[int, ...]]  # name, type and shape of a tensor


@lru_cache(maxsize=1024)
def _layout(kinds: tuple[Kind, ...], num_images: int) -> tuple[list[str], str, int]:
    """The order of tensors behind the images' sizes, the table's lines up to the images, and where
    these begin. Kept, as the chunks of a session are of one shape.
    """
    end, order = 8 * num_images, []
    table = [_entry(SIZES, "I64", (num_images,), 0, end)]
    for name, dtype, shape in sorted(kinds, key=lambda kind: -kind[1].itemsize):
        begin, end = end, end + dtype.itemsize * math.prod(shape)
        table.append(_entry(name, DTYPES[dtype], shape, begin, end))
        order += [name] if end > begin else []
    return order, ",".join(table), end


def _raw(tensor: Tensor) -> bytes:
    if tensor.dtype == torch.bfloat16:  # numpy has no such type
        tensor = tensor.view(torch.int16)
    return tensor.numpy(force=True).tobytes()


def _entry(name: str, dtype: str, shape: tuple[int, ...], begin: int, end: int) -> str:
    """One line of the table, as JSON: by hand, as names and types need no escapes."""
    sizes = ",".join(map(str, shape))
    return f'"{name}":{{"dtype":"{dtype}","shape":[{sizes}],"data_offsets":[{begin},{end}]}}'


def unpack_segment(data: bytes, device: str = "cpu") -> tuple[SegmentHeader, Increment]:
    """The inverse, without images; raises SegmentCorrupt."""
    header, _ = parse_segment(data)
    try:
        tensors = safetensors.torch.load(data)
        if RELIEF not in tensors:  # of before it was kept
            tensors[RELIEF] = torch.zeros(len(tensors[DELTA_NAMES["ids"]]), 0, dtype=torch.int8)
        delta = {name: tensors[key].to(device) for name, key in DELTA_NAMES.items()}
        latents = tensors["latents"].to(device)
        views = (tensors["intrinsics"], tensors["world_from_camera"])
        coverage = tensors["coverage"]
        measured = tensors["measured"].to(device) if "measured" in tensors else None
        guess = {n: tensors[key].to(device) for n, key in GUESS_NAMES.items() if key in tensors}
    except (SafetensorError, KeyError) as error:
        raise SegmentCorrupt(f"segment {header.index} of {header.session}: {error}") from error
    height, width = int(header.intrinsics["height"]), int(header.intrinsics["width"])
    increment = Increment(
        delta=Delta(**delta),
        frame_indices=tuple(header.frame_indices),
        images=torch.zeros(0, height, width, 3, dtype=torch.uint8),
        cameras=Cameras(*views, height, width),
        latents=latents,
        coverage=coverage,
        timings_ms={},
        guess=Guess(**guess) if guess else None,
        measured=measured,
        colours=tensors.get(COLOURS),
    )
    return header, increment
