"""The gRPC server: same process, same loop, same gateway as HTTP; a port of its own.

Health and reflection are on; messages are limited by what an upload may be; connections that fell
silent are found by pings; TLS and client certificates by settings.
"""

from __future__ import annotations

from pathlib import Path

import grpc
from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from service.errors import ConfigurationError
from service.gateway import Gateway
from service.limits import FORM_OVERHEAD_BYTES
from service.rpc.world import World
from service.settings import Settings
from service.wire import world_pb2, world_pb2_grpc

NAME = world_pb2.DESCRIPTOR.services_by_name["World"].full_name
GRACE_S = 3.0  # for calls that run when the gateway stops
PING_MS, PONG_MS = 20_000, 10_000


class RpcServer:
    """Started and stopped with the app."""

    def __init__(self, gateway: Gateway) -> None:
        self._settings = gateway.settings
        self._server = aio.server(options=_options(gateway.settings))
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]
        world = World(gateway)  # type: ignore[abstract]
        world_pb2_grpc.add_WorldServicer_to_server(world, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (NAME, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)

    async def start(self) -> None:
        """Listen; raises ConfigurationError if the port is taken or a certificate unusable."""
        self._bind()
        await self._server.start()
        for name in ("", NAME):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    async def stop(self) -> None:
        """Refuse new calls, let streams end, then cancel what is left."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(GRACE_S)

    def _bind(self) -> None:
        host = self._settings.host
        address = f"{f'[{host}]' if ':' in host else host}:{self._settings.grpc_port}"
        try:
            credentials = _credentials(self._settings)
            if credentials is None:
                self._server.add_insecure_port(address)
            else:
                self._server.add_secure_port(address, credentials)
        except (RuntimeError, OSError) as error:
            raise ConfigurationError(f"gRPC can't listen on {address}: {error}") from error


def _options(settings: Settings) -> list[tuple[str, int]]:
    largest = 2 * settings.max_upload_bytes + FORM_OVERHEAD_BYTES
    return [
        ("grpc.max_receive_message_length", largest),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", 16_384),
        ("grpc.keepalive_time_ms", PING_MS),
        ("grpc.keepalive_timeout_ms", PONG_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
        ("grpc.so_reuseport", 0),  # a second gateway on this port is a mistake
    ]


def _credentials(settings: Settings) -> grpc.ServerCredentials | None:
    cert, key = settings.grpc_tls_cert, settings.grpc_tls_key
    if not cert:
        return None
    authority = settings.grpc_tls_client_ca
    return grpc.ssl_server_credentials(
        [(_read(key), _read(cert))],
        root_certificates=_read(authority) if authority else None,
        require_client_auth=bool(authority),
    )


def _read(path: str) -> bytes:
    return Path(path).read_bytes()
