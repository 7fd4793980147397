"""Increment <-> bytes of a segment, and the encoding of frames, once.

A segment is safetensors with a JSON header, never pickle. Everything that a World needs to go on is
stored as it is in memory, bit for bit; the images only as encoded for clients, since nothing is
ever generated from them. Replaying a World's segments in order restores it.

Axis legend: t frames, H W pixels.
"""

from __future__ import annotations

import io
from dataclasses import fields
from typing import Literal

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from service.errors import SegmentCorrupt
from service.segments import FRAMES, SIZES, SegmentHeader, parse_segment
from worker.geometry import Cameras
from worker.memory.base import Delta
from worker.world import Increment

WEBP_EFFORT = 2  # of 0..6: 4 is a tenth smaller and twice as slow
DELTA = "delta."


def encode_image(image: Tensor, form: Literal["webp", "jpeg"], quality: int) -> bytes:
    """(H, W, 3) uint8 -> the bytes of an image file; the same input gives the same bytes."""
    stream = io.BytesIO()
    picture = Image.fromarray(image.numpy())
    if form == "webp":
        picture.save(stream, "webp", quality=quality, method=WEBP_EFFORT)
    else:
        picture.save(stream, "jpeg", quality=quality)
    return stream.getvalue()


def pack_segment(header: SegmentHeader, increment: Increment, images: list[bytes]) -> bytes:
    """The file of one segment; `images` are the encoded frames that `header.frames` lists."""
    tensors = {DELTA + one.name: getattr(increment.delta, one.name) for one in fields(Delta)}
    tensors |= {
        "latents": increment.latents,
        "coverage": increment.coverage,
        "intrinsics": increment.cameras.intrinsics,
        "world_from_camera": increment.cameras.world_from_camera,
        FRAMES: torch.from_numpy(np.frombuffer(b"".join(images), dtype=np.uint8).copy()),
        SIZES: torch.tensor([len(image) for image in images], dtype=torch.int64),
    }
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return safetensors.torch.save(ready, metadata={"header": header.model_dump_json()})


def unpack_segment(data: bytes, device: str = "cpu") -> tuple[SegmentHeader, Increment]:
    """The inverse, without images; raises SegmentCorrupt."""
    header, _ = parse_segment(data)
    try:
        tensors = safetensors.torch.load(data)
        delta = {one.name: tensors[DELTA + one.name].to(device) for one in fields(Delta)}
        latents = tensors["latents"].to(device)
        views = (tensors["intrinsics"], tensors["world_from_camera"])
        coverage = tensors["coverage"]
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
    )
    return header, increment
