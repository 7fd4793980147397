"""H.264 in fragmented MP4, one frame after the other: what a browser's video element plays live.

How: one x264 encoder per stream with `zerolatency` (no frame waits for later ones). The header
comes from the muxer; each picture then becomes one fragment (moof + mdat, ISO/IEC 14496-12),
written here, because the muxer holds every fragment back until it has seen the next frame. So the
delay is constant: each picture that goes in comes out at once. Trade-off: a fragment costs about
120 bytes; what the worker compressed is compressed again, lossily.
"""

from __future__ import annotations

import io
import re
import struct
from fractions import Fraction

import av
import numpy as np
from numpy.typing import NDArray

MEDIA_TYPE = "video/mp4"
KEY_EVERY = 60  # frames: who joins or loses one waits no longer
CLOCK_HZ = 90_000
FIRST_DURATION = CLOCK_HZ // 15  # until a gap is known
KEY_SAMPLE, DELTA_SAMPLE = 0x02000000, 0x01010000  # sample_depends_on, sample_is_non_sync
START_CODE = re.compile(b"\x00\x00\x00?\x01")


class Film:
    """The encoder of one stream. Not for two threads at a time."""

    def __init__(self, width: int, height: int, quality: int) -> None:
        """`quality` 1 .. 100 as of JPEG; even sides."""
        sink = io.BytesIO()
        flags = {"movflags": "empty_moov+default_base_moof"}
        container = av.open(sink, "w", format="mp4", options=flags)
        options = {
            "crf": str(round(51 - 0.36 * quality)),
            "preset": "veryfast",
            "tune": "zerolatency",
            "sc_threshold": "0",  # a cut costs quality for a moment, not delay
        }
        stream = container.add_stream("libx264", rate=30, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, CLOCK_HZ)
        stream.codec_context.gop_size = KEY_EVERY
        stream.codec_context.thread_count = 1
        container.start_encoding()
        self._head = sink.getvalue()
        self._container, self._stream = container, stream
        self._count, self._last = 0, -1

    def add(self, picture: NDArray[np.uint8], time_s: float) -> bytes:
        """The piece of the file that one picture (H, W, 3) becomes, shown at `time_s`."""
        at = max(self._last + 1, round(CLOCK_HZ * time_s))
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame.pts, frame.time_base = at, Fraction(1, CLOCK_HZ)
        (packet,) = self._stream.encode(frame)
        duration = FIRST_DURATION if self._last < 0 else at - self._last
        self._count, self._last = self._count + 1, at
        data = _length_prefixed(bytes(packet))
        piece = _fragment(self._count, at, duration, data, packet.is_keyframe)
        head, self._head = self._head, b""
        return head + piece

    def close(self) -> None:
        self._container.close()


def _fragment(count: int, at: int, duration: int, data: bytes, is_key: bool) -> bytes:
    flags = KEY_SAMPLE if is_key else DELTA_SAMPLE
    moof = b""
    for _ in range(2):  # the second time its own size is known, which says where the data lies
        run = struct.pack(">IIiIII", 0x701, 1, len(moof) + 8, duration, len(data), flags)
        track = _box(b"tfhd", struct.pack(">II", 0x020000, 1))
        time = _box(b"tfdt", struct.pack(">IQ", 0x01000000, at))
        traf = _box(b"traf", track + time + _box(b"trun", run))
        moof = _box(b"moof", _box(b"mfhd", struct.pack(">II", 0, count)) + traf)
    return moof + _box(b"mdat", data)


def _box(kind: bytes, payload: bytes) -> bytes:
    return struct.pack(">I", 8 + len(payload)) + kind + payload


def _length_prefixed(annex_b: bytes) -> bytes:
    """H.264 units with their lengths before them, as MP4 wants, not with start codes between."""
    units = [unit for unit in START_CODE.split(annex_b) if unit]
    return b"".join(struct.pack(">I", len(unit)) + unit for unit in units)
