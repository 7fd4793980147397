"""Files as clients upload them."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image


def png(width: int = 96, height: int = 64, seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return encoded(Image.fromarray(pixels), "PNG")


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def jpeg_of_scans(number: int) -> bytes:
    """Whose last scan comes so often, small and good for as long as anybody decodes it."""
    data = encoded(Image.new("RGB", (64, 64), (10, 200, 30)), "JPEG", progressive=True)
    before, last = data[: data.rindex(b"\xff\xda")], data[data.rindex(b"\xff\xda") : -2]
    return before + last * (number - before.count(b"\xff\xda")) + b"\xff\xd9"


def png_with(kind: bytes, data: bytes, number: int = 1) -> bytes:
    """With so many chunks after its header."""
    chunk = struct.pack(">I", len(data)) + kind + data
    chunk += struct.pack(">I", zlib.crc32(kind + data))
    picture = png(64, 64)
    return picture[:33] + chunk * number + picture[33:]
