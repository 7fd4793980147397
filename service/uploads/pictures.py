"""Opening an untrusted picture with Pillow: few formats, sizes and parts checked before a pixel is
decoded, one kind of error.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError

from service.errors import FieldProblem, InvalidUpload
from service.uploads.parts import excess, num_scans

# What Pillow's decoders raise on damaged files, beside OSError
DAMAGE = (SyntaxError, ValueError, EOFError, KeyError, TypeError, struct.error, zlib.error)
SCANS_OF_LARGEST = 20  # that a picture of `max_pixels` may have: a second of decoding
MOST_OPENED = 2 * (Image.MAX_IMAGE_PIXELS or 0)  # beyond these Pillow refuses by itself


@dataclass(frozen=True)
class UploadLimits:
    """Of each uploaded file."""

    max_bytes: int
    max_pixels: int


@contextmanager
def open_picture(
    data: bytes, limits: UploadLimits, field: str, formats: tuple[str, ...]
) -> Iterator[Image.Image]:
    """The picture, not decoded yet; whatever is wrong with it while the block uses it is an
    InvalidUpload.
    """
    check_size(data, limits, field)
    if found := excess(data):
        raise _invalid(field, *found)
    many = f"at most {limits.max_pixels:,} pixels"
    try:
        with Image.open(io.BytesIO(data), formats=formats) as image:
            if image.width * image.height > limits.max_pixels:
                raise _invalid(
                    field, f"{image.width} x {image.height} pixels", many, "image_pixels"
                )
            _check_scans(image, num_scans(data), limits, field)
            yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _invalid(field, f"more than {MOST_OPENED:,} pixels", many) from error
    except (OSError, *DAMAGE) as error:
        is_other = isinstance(error, UnidentifiedImageError)
        what = f"no {' or '.join(formats)}" if is_other else str(error)
        seen = f"{len(data):,} bytes starting {data[:12]!r}: {what}"
        raise _invalid(field, seen, f"a complete {', '.join(formats)} file") from error


def check_size(data: bytes, limits: UploadLimits, field: str) -> None:
    """Refuse a file by its number of bytes."""
    if not 0 < len(data) <= limits.max_bytes:
        allowed = f"1 to {limits.max_bytes:,} bytes"
        raise _invalid(field, f"{len(data):,} bytes", allowed, "upload_bytes")


def _check_scans(image: Image.Image, scans: int, limits: UploadLimits, field: str) -> None:
    """Refuse a JPEG whose pixels are gone over too often: each scan goes over all of them."""
    most = SCANS_OF_LARGEST * limits.max_pixels
    if image.width * image.height * scans > most:
        seen = f"{image.width} x {image.height} pixels in {scans} scans"
        allowed = f"at most {most:,} pixels times scans: save it as a baseline JPEG, or smaller"
        raise _invalid(field, seen, allowed, "image_pixels")


def check_aspect(shape: tuple[int, ...], width: int, height: int, field: str) -> None:
    """Refuse a map (H', W') that is no scaled copy of the image's pixels, however its sides were
    rounded.
    """
    map_height, map_width = shape
    if abs(map_width * height - map_height * width) >= max(width, height):
        seen = f"{map_width} x {map_height} pixels"
        allowed = f"the image's {width} x {height} (upright), or its aspect in another resolution"
        raise _invalid(field, seen, allowed)


def _invalid(field: str, seen: str, allowed: str, limit: str = "") -> InvalidUpload:
    problem = FieldProblem(field, seen, allowed)
    return InvalidUpload(f"The {field} can't be used: {seen}.", fields=(problem,), limit=limit)
