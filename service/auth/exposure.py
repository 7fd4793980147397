"""A service that anybody may use must not listen where anybody can reach it."""

from __future__ import annotations

import ipaddress

from service.errors import ConfigurationError
from service.settings import Settings


def check_exposure(settings: Settings) -> None:
    """Raises ConfigurationError for a public address without keys."""
    if not is_open(settings) or is_loopback(settings.host):
        return
    raise ConfigurationError(
        f"MIRAGE_HOST={settings.host} can be reached from other machines, and no keys are "
        "required. Set MIRAGE_REQUIRE_KEYS=true (`mirage keys create` makes keys), listen on "
        "127.0.0.1, or say --insecure if something in front of it keeps strangers out."
    )


def is_open(settings: Settings) -> bool:
    """Whether nothing but its address keeps strangers out."""
    return not (settings.require_keys or settings.insecure)


def is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, or empty for every address
        return False
