"""H.264 fragments: a picture in, a playable piece out, without delay."""

from __future__ import annotations

import io

import av
import numpy as np
import pytest

from service.stream.film import Film


def pictures(count: int) -> list[np.ndarray]:
    """A grey ramp (64 x 96) that moves."""
    ramp = np.tile(np.linspace(0, 255, 96, dtype=np.uint8)[None, :, None], (64, 1, 3))
    return [np.roll(ramp, 2 * i, axis=1) for i in range(count)]


def decoded(data: bytes) -> list[av.VideoFrame]:
    with av.open(io.BytesIO(data)) as container:
        return list(container.decode(video=0))


def test_every_piece_is_playable_at_once() -> None:
    film, received = Film(96, 64, quality=90), b""
    for index, picture in enumerate(pictures(12)):
        piece = film.add(picture, index / 15)
        assert piece[4:8] == (b"moof" if index else b"ftyp")
        received += piece
        frames = decoded(received)
        assert len(frames) == index + 1  # nothing waits for a later picture
        error = frames[-1].to_ndarray(format="rgb24").astype(int) - picture
        assert np.abs(error).mean() < 6
        assert float(frames[-1].time) == pytest.approx(index / 15, abs=1e-3)
    film.close()


def test_quality_costs_bytes() -> None:
    sizes = []
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (64, 96, 3), dtype=np.uint8)
    for quality in (20, 60, 90):
        film = Film(96, 64, quality)
        sizes.append(len(film.add(noise, 0.0)))
        film.close()
    assert sizes == sorted(sizes) and sizes[0] * 2 < sizes[-1]


def test_keyframes_return_so_that_somebody_who_joins_sees_something() -> None:
    film = Film(96, 64, quality=50)
    data = b"".join(film.add(picture, i / 30) for i, picture in enumerate(pictures(125)))
    film.close()
    assert [i for i, frame in enumerate(decoded(data)) if frame.key_frame] == [0, 60, 120]
