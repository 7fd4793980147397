"""Of how many parts a picture's file is made, looked at before anything decodes it.

Decoders take their time for each part, however few bytes it has: a scan of a JPEG goes over every
pixel in a hundred bytes, a chunk of a PNG may unpack to a thousand times its size, EXIF becomes
Python's numbers one by one.
"""

from __future__ import annotations

import re
import struct
from collections import Counter
from collections.abc import Iterable, Iterator

SCANS, METADATA, EXIF = "scans", "segments or chunks beside the pixels", "bytes of EXIF"
MOST = {SCANS: 100, METADATA: 1000, EXIF: 1 << 20}  # a browser's progressive JPEG has ten scans
PIXELS = (b"IDAT", b"fdAT", b"fcTL", b"ANMF")  # these take no longer than their bytes
# Those with a length, and the end. No scan's data has them: there 0 or a restart follows 0xFF.
MARKER = re.compile(rb"\xff([\xc0-\xc7\xc9-\xcf\xd9-\xef\xfe])")
END_OF_IMAGE, START_OF_SCAN, APP1 = 0xD9, 0xDA, 0xE1


def excess(data: bytes) -> tuple[str, str] | None:
    """What there is too much of, and how much is allowed."""
    counted: Counter[str] = Counter()
    for kind, number in _parts(data):
        counted[kind] += number
        if counted[kind] > MOST[kind]:
            return f"a file of more than {MOST[kind]:,} {kind}", f"at most {MOST[kind]:,}"
    return None


def num_scans(data: bytes) -> int:
    """Of a JPEG; anything else has none."""
    return sum(number for kind, number in _parts(data) if kind == SCANS)


def _parts(data: bytes) -> Iterator[tuple[str, int]]:
    if data.startswith(b"\xff\xd8\xff"):
        return _of_jpeg(data)
    if data.startswith(b"\x89PNG"):
        return _of_chunks(_png_chunks(data))
    if data.startswith(b"RIFF"):
        return _of_chunks(_riff_chunks(data))
    return iter(())


def _of_jpeg(data: bytes) -> Iterator[tuple[str, int]]:
    """Up to the end of the first image: phones append others."""
    at, has_scan = 2, False
    while found := MARKER.search(data, at):
        kind, at = found[1][0], found.end()
        if kind == END_OF_IMAGE and has_scan:
            return
        yield (SCANS if kind == START_OF_SCAN else METADATA), 1
        if kind == END_OF_IMAGE:  # Pillow goes on to the first scan
            continue
        has_scan |= kind == START_OF_SCAN
        length = int.from_bytes(data[at : at + 2], "big")
        if kind == APP1 and data.startswith(b"Exif", at + 2):
            yield EXIF, length
        at += length


def _of_chunks(chunks: Iterable[tuple[bytes, int]]) -> Iterator[tuple[str, int]]:
    for kind, num_bytes in chunks:
        if kind not in PIXELS:
            yield METADATA, 1
        if kind.upper() == b"EXIF":
            yield EXIF, num_bytes


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int]]:
    at, kind = 8, b""
    while at + 8 <= len(data) and kind != b"IEND":
        num_bytes, kind = struct.unpack_from(">I4s", data, at)
        yield kind, num_bytes
        at += 12 + num_bytes


def _riff_chunks(data: bytes) -> Iterator[tuple[bytes, int]]:
    at = 12
    while at + 8 <= len(data):
        kind, num_bytes = struct.unpack_from("<4sI", data, at)
        yield kind, num_bytes
        at += 8 + num_bytes + num_bytes % 2
