"""What every endpoint of one gateway process shares, and how they get hold of it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends
from starlette.requests import HTTPConnection

from service.auth.guard import Guard
from service.control.callers import Caller, is_full
from service.control.plane import ControlPlane
from service.errors import TooManyRequests
from service.samples import Samples
from service.settings import Settings
from service.telemetry import Metrics
from service.uploads.pictures import UploadLimits
from service.video_cache import VideoCache
from service.webhooks import Webhooks


@dataclass(frozen=True)
class Gateway:
    settings: Settings
    control: ControlPlane
    guard: Guard
    samples: Samples
    metrics: Metrics
    videos: VideoCache
    webhooks: Webhooks
    heavy: asyncio.Semaphore  # held while decoding an upload or muxing a video: bounds memory
    closing: asyncio.Event = field(default_factory=asyncio.Event)  # streams say goodbye and end
    open_streams: dict[object, Caller] = field(default_factory=dict)

    @contextmanager
    def streaming(self, caller: Caller) -> Iterator[None]:
        """Count a stream, over whatever transport, inside the block; a caller may have so many.

        Raises TooManyRequests.
        """
        self.check_streams(caller)
        token = object()
        self.open_streams[token] = caller
        self.metrics.streams.set(len(self.open_streams))
        try:
            yield
        finally:
            del self.open_streams[token]
            self.metrics.streams.set(len(self.open_streams))

    def check_streams(self, caller: Caller) -> None:
        """Raise TooManyRequests if `caller` can't have another stream here now."""
        held = Counter(self.open_streams.values())
        if is_full(held, caller, self.settings.max_streams_per_key):
            whose = "guests of this share link" if caller.share else "keys of this owner"
            raise TooManyRequests(
                f"the {whose} have {held[caller]} streams open here; close one",
                limit="streams_per_key",
            )

    @property
    def frame_size(self) -> tuple[int, int]:
        """Width, height."""
        return self.settings.frame_width, self.settings.frame_height

    @property
    def upload_limits(self) -> UploadLimits:
        return UploadLimits(self.settings.max_upload_bytes, self.settings.max_image_pixels)


def gateway_of(connection: HTTPConnection) -> Gateway:
    """The dependency: works for requests and WebSockets alike."""
    gateway: Gateway = connection.app.state.gateway
    return gateway


GatewayDep = Annotated[Gateway, Depends(gateway_of)]
