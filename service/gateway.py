"""What every endpoint of one gateway process shares, and how they get hold of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends
from starlette.requests import HTTPConnection

from service.auth.guard import Guard
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
    open_streams: dict[object, str] = field(default_factory=dict)  # -> its owner

    @contextmanager
    def streaming(self, owner: str) -> Iterator[None]:
        """Count a stream, over whatever transport, inside the block; an owner may have so many.

        Raises TooManyRequests.
        """
        self.check_streams(owner)
        token = object()
        self.open_streams[token] = owner
        self.metrics.streams.set(len(self.open_streams))
        try:
            yield
        finally:
            del self.open_streams[token]
            self.metrics.streams.set(len(self.open_streams))

    def check_streams(self, owner: str) -> None:
        """Raise TooManyRequests if `owner` can't have another stream here now."""
        most = self.settings.max_streams_per_key
        if owner and list(self.open_streams.values()).count(owner) >= most:
            raise TooManyRequests(
                f"the keys of this owner have {most} streams open here; close one",
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
