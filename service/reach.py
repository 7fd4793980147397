"""For commands beside a running service: the Redis it uses, wherever that is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from service.control import ControlPlane
from service.embedded import EmbeddedValkey, running_url
from service.errors import ConfigurationError
from service.settings import Settings, load_settings
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
async def reached(settings: Settings, *, create: bool = False) -> AsyncIterator[ControlPlane]:
    """The control plane on MIRAGE_REDIS_URL, else on the embedded Valkey of the data folder: that
    of a running `mirage up`, or one started for the length of the block. `create`: the folder, too.

    Raises ControlPlaneDown, ConfigurationError.
    """
    if not (create or settings.redis_url or settings.data_dir.is_dir()):
        raise ConfigurationError(
            f"there is no data folder {settings.data_dir}: name that of your service with "
            "--data-dir or MIRAGE_DATA_DIR; `mirage up` makes one"
        )
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
