"""An MP4 decodes again to the frames it was made of."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor

import av
import numpy as np
import pytest
from fake_worker import picture
from PIL import Image

from service.video import decode_frame, mux_images, mux_mp4


def decoded(video: bytes) -> list[np.ndarray]:
    with av.open(io.BytesIO(video)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.mark.parametrize("count", [1, 33])
def test_every_frame_comes_back_in_order(count: int) -> None:
    video = mux_mp4([picture(5 * number, 64, 32) for number in range(count)], 15)
    frames = decoded(video)
    assert len(frames) == count
    assert frames[0].shape == (32, 64, 3)
    reds = [int(np.median(frame[..., 0])) for frame in frames]
    np.testing.assert_allclose(reds, [5 * number for number in range(count)], atol=6)


def test_the_index_comes_first_and_the_rate_is_kept() -> None:
    video = mux_mp4([picture(number, 64, 32) for number in range(10)], 12)
    assert video.index(b"moov") < video.index(b"mdat")
    with av.open(io.BytesIO(video)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == 12
        assert stream.codec_context.name in ("h264", "libx264")


def test_one_list_of_frames_makes_one_file_also_beside_others() -> None:
    """Parts of a file that two gateways made, or one gateway twice, must fit together."""
    rough = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(rough).resize((320, 192)))
    frames = [np.roll(smooth, 3 * number, axis=1) for number in range(30)]
    with ThreadPoolExecutor(6) as pool:
        videos = set(pool.map(lambda _: mux_images(frames, 15), range(40)))
    assert len(videos) == 1


def test_frames_are_decoded_as_rgb() -> None:
    assert decode_frame(picture(200, 64, 32))[3, 4].tolist() == [200, 80, 160]
