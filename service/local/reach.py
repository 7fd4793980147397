"""For commands beside a running service: the Redis it uses, wherever that is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from service.control.plane import ControlPlane
from service.errors import ConfigurationError
from service.local.embedded import EmbeddedValkey, copy_data, running_url
from service.settings import Settings, load_settings
from service.store.objects import ObjectStore
from service.store.unchanged import UnchangedStore
from service.telemetry import configure_logging


def command_settings(**given: Any) -> Settings:
    """`load_settings` for a command, which says in words what it did: it logs warnings and worse,
    unless MIRAGE_LOG_LEVEL asks for more.
    """
    settings = load_settings(**given)
    is_asked = "log_level" in settings.model_fields_set
    configure_logging(settings.log_level if is_asked else "warning")
    return settings


@asynccontextmanager
async def reached(
    settings: Settings, *, create: bool = False, unchanged: bool = False
) -> AsyncIterator[ControlPlane]:
    """The control plane on MIRAGE_REDIS_URL, else on the embedded Valkey of the data folder: that
    of a running `mirage up`, or one started for the length of the block. `create`: the folder, too.
    `unchanged`: one that is started works on a copy of its data, and nothing is stored or removed.

    Raises ControlPlaneDown, ConfigurationError.
    """
    if not (create or settings.redis_url or settings.data_dir.is_dir()):
        raise ConfigurationError(
            f"there is no data folder {settings.data_dir}: name that of your service with "
            "--data-dir or MIRAGE_DATA_DIR; `mirage up` makes one"
        )
    async with AsyncExitStack() as stack:
        objects, url = ObjectStore, settings.redis_url or running_url(settings.data_dir)
        if not url:
            folder = settings.data_dir
            if unchanged:
                objects = UnchangedStore
                folder = Path(stack.enter_context(TemporaryDirectory(prefix="mirage-")))
                await asyncio.to_thread(copy_data, settings.data_dir, folder)
            url = await stack.enter_async_context(EmbeddedValkey(folder))
        found = settings.model_copy(update={"redis_url": url})
        control = await ControlPlane.open(found, objects)
        stack.push_async_callback(control.close)
        yield control
