"""In which form a stream's pictures go out, and how good they are while its client is slow.

By default as the worker encoded them: nothing is decoded, nothing is lost. A stream that asks for
another form, or for `adaptive` and falls behind, gets pictures that a thread encodes again, one at
a time per stream; the event loop never waits for pixels.
"""

from __future__ import annotations

import asyncio
import io
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.stream.film import MEDIA_TYPE, Film
from service.video import decode_frame

Format = Literal["", "jpeg", "webp", "raw", "h264"]  # "": as the worker encoded it

DEFAULT_QUALITY = 80  # of what is encoded again
STEPS = (1.0, 0.7, 0.45, 0.25)  # of the quality, as a client gets slower
CALM_FRAMES = 60  # sent without delay before quality rises again


class Picture(NamedTuple):
    media_type: str
    data: bytes


class Adaptation:
    """How far quality is lowered: a step down when a send was late, up after a calm while."""

    def __init__(self, is_on: bool) -> None:
        self._is_on = is_on
        self._calm = 0
        self.step = 0

    def sent(self, was_late: bool) -> None:
        if not self._is_on:
            return
        self._calm = 0 if was_late else self._calm + 1
        if was_late:
            self.step = min(self.step + 1, len(STEPS) - 1)
        elif self._calm >= CALM_FRAMES:
            self.step, self._calm = max(0, self.step - 1), 0


class Pictures:
    """The encoder of one stream."""

    def __init__(self, form: Format, quality: int, adaptive: bool) -> None:
        self._form, self._quality = form, quality
        self.adaptation = Adaptation(adaptive)
        self._film: tuple[Film, int] | None = None  # and its quality

    @property
    def quality(self) -> int:
        """As sent now; 0 = as the worker made it."""
        if self._is_untouched or self._form == "raw":
            return 0
        return max(1, round((self._quality or DEFAULT_QUALITY) * STEPS[self.adaptation.step]))

    @property
    def _is_untouched(self) -> bool:
        return self._form == "" and self._quality == 0 and self.adaptation.step == 0

    async def encoded(self, media_type: str, data: bytes, time_s: float) -> Picture:
        """One picture as this stream wants it; `time_s` places it on a film."""
        if self._is_untouched:
            return Picture(media_type, data)
        if media_type == f"image/{self._form}" and self.quality == 0:
            return Picture(media_type, data)
        return await asyncio.to_thread(self._again, media_type, data, time_s)

    def close(self) -> None:
        if self._film is not None:
            self._film[0].close()
            self._film = None

    def _again(self, media_type: str, data: bytes, time_s: float) -> Picture:
        pixels = decode_frame(data)
        if self._form == "raw":
            return Picture("application/octet-stream", pixels.tobytes())
        if self._form == "h264":
            return Picture(MEDIA_TYPE, self._filmed(pixels, time_s))
        form = self._form or media_type.removeprefix("image/")
        sink = io.BytesIO()
        Image.fromarray(pixels).save(sink, form.upper(), quality=self.quality)
        return Picture(f"image/{form}", sink.getvalue())

    def _filmed(self, pixels: NDArray[np.uint8], time_s: float) -> bytes:
        """A new quality begins a new film, with its header: players append it to the old one."""
        if self._film is None or self._film[1] != self.quality:
            self.close()
            height, width = pixels.shape[:2]
            self._film = Film(width, height, self.quality), self.quality
        return self._film[0].add(pixels, time_s)
