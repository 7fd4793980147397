"""The Python SDK; docs/sdk.md shows it at work.

    with Mirage("http://127.0.0.1:8000") as mirage:
        world = mirage.create("photo.jpg")
        for picture in world.walk(actions=[{"forward_m": 1.0}, {"yaw_deg": 30}]):
            print(picture.shape)  # (H, W, 3) uint8

`AsyncMirage` is the same with `await`. Both try again what a lost connection may have left undone,
without doing it twice, and reconnect streams where they broke off.
"""

from service.client.aio import AsyncGeneration, AsyncMirage, AsyncWorld
from service.client.frames import Frame, ServiceError, save_mp4
from service.client.stream import Stream
from service.client.sync import Generation, LiveStream, Mirage, World

__all__ = [
    "AsyncGeneration",
    "AsyncMirage",
    "AsyncWorld",
    "Frame",
    "Generation",
    "LiveStream",
    "Mirage",
    "ServiceError",
    "Stream",
    "World",
    "save_mp4",
]
