"""For commands beside a running service: the Redis it uses, wherever that is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from service.control import ControlPlane
from service.embedded import EmbeddedValkey, running_url
from service.settings import Settings


@asynccontextmanager
async def reached(settings: Settings) -> AsyncIterator[ControlPlane]:
    """The control plane on MIRAGE_REDIS_URL, else on the embedded Valkey of the data folder: that
    of a running `mirage up`, or one started for the length of the block.

    Raises ControlPlaneDown.
    """
    url = settings.redis_url or running_url(settings.data_dir)
    if url:
        control = await ControlPlane.open(settings.model_copy(update={"redis_url": url}))
        try:
            yield control
        finally:
            await control.close()
        return
    async with EmbeddedValkey(settings.data_dir) as own:
        async with reached(settings.model_copy(update={"redis_url": own})) as control:
            yield control
