"""Hosts and ports: as an address has them, and whether anybody may listen there."""

from __future__ import annotations

import socket

from service.errors import ConfigurationError
from service.settings import Settings


def address(host: str, port: int) -> str:
    """As URLs and gRPC have it: IPv6 in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def check_ports(settings: Settings) -> None:
    """Raises ConfigurationError if nobody may listen on the port of HTTP, or of gRPC, now."""
    with _probe(settings.host, settings.port, "--port, MIRAGE_PORT; 0: a free one"):
        if settings.grpc_port:  # inside: they can't be the same port, either
            _probe(settings.host, settings.grpc_port, "MIRAGE_GRPC_PORT; 0: no gRPC").close()


def _probe(host: str, port: int, setting: str) -> socket.socket:
    probe = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        probe.listen()
    except OSError as error:
        probe.close()
        raise cannot_listen(host, port, setting, error) from error
    return probe


def cannot_listen(host: str, port: int, setting: str, error: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"port {port} of {host} can't be listened on ({error.strerror}): stop what uses it, or "
        f"choose another ({setting})"
    )
