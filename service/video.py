"""MP4 from frames as the worker encoded them: decoded once, muxed as H.264, no scaling and no
colour change.

Trade-off: the whole file is made at once (a few MB per thousand frames at our sizes) so that its
index can stand at the front and players can seek; a live picture goes over the stream instead.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image


def mux_mp4(frames: Iterable[bytes], frames_per_s: int) -> bytes:
    """Encoded images (WebP, JPEG or PNG, one size with even sides) -> an H.264 MP4, always the same
    for the same images; at least one frame.
    """
    return mux_images((decode_frame(frame) for frame in frames), frames_per_s)


def mux_images(images: Iterable[NDArray[np.uint8]], frames_per_s: int) -> bytes:
    """Images (H, W, 3) uint8 of one size, even sides -> an H.264 MP4 that browsers play."""
    with tempfile.TemporaryDirectory(prefix="mirage-video-") as folder:
        path = Path(folder) / "video.mp4"  # a file: the muxer goes back to put the index first
        with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
            _encode(container, images, frames_per_s)
        return path.read_bytes()


def decode_frame(frame: bytes) -> NDArray[np.uint8]:
    """One encoded image of our own -> (H, W, 3) uint8."""
    with Image.open(io.BytesIO(frame)) as image:
        return np.asarray(image.convert("RGB"))


def _encode(
    container: av.container.OutputContainer,
    images: Iterable[NDArray[np.uint8]],
    frames_per_s: int,
) -> None:
    stream = None
    for index, image in enumerate(images):
        if stream is None:
            stream = _stream(container, image.shape[1], image.shape[0], frames_per_s)
        frame = av.VideoFrame.from_ndarray(image, format="rgb24")
        frame.pts = index
        container.mux(stream.encode(frame))
    assert stream is not None, "a video needs at least one frame"
    container.mux(stream.encode(None))


def _stream(
    container: av.container.OutputContainer, width: int, height: int, frames_per_s: int
) -> av.VideoStream:
    # Without mbtree: with it x264 reads what it never wrote, and one input gives several files.
    options = {"crf": "18", "x264-params": "mbtree=0"}
    stream = container.add_stream("libx264", rate=frames_per_s, options=options)
    stream.width, stream.height = width, height
    stream.pix_fmt = "yuv420p"
    stream.time_base = Fraction(1, frames_per_s)
    stream.codec_context.thread_count = 1
    return stream
