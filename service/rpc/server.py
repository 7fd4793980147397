"""The gRPC server: same process, same loop, same gateway as HTTP; a port of its own.

Health and reflection are on; messages are limited by what an upload may be; connections that fell
silent are found by pings; TLS and client certificates by settings.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from starlette.types import ASGIApp

from service.addresses import address
from service.errors import ConfigurationError
from service.gateway import Gateway
from service.limits import FORM_FILES, FORM_OVERHEAD_BYTES, MAX_HEAD_BYTES
from service.rpc.calls import SERVICE, Calls
from service.rpc.walk import Walk
from service.settings import Settings

GRACE_S = 3.0  # for calls that run when the gateway stops
PING_MS, PONG_MS = 20_000, 10_000
AHEAD_BYTES = 1 << 20  # of a call: uploads of 20 MB a second where the round trip takes 50 ms
# Whether or not the answer is a stream, the question is read as one, as bytes: else a message is
# taken, up to 63 MB of it, and parsed before a handler can ask who sends it.
KINDS = {
    False: grpc.stream_unary_rpc_method_handler,
    True: grpc.stream_stream_rpc_method_handler,
}


class Short(aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in its stubs alone
    """Health and reflection answer anybody, so what they are asked is short before it is parsed.
    Our own calls parse for themselves.
    """

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        handler = await continuation(details)
        if handler is None or handler.request_deserializer is None:
            return handler
        return handler._replace(request_deserializer=partial(_short, handler.request_deserializer))


def _short(parse: Callable[[bytes], Message], data: bytes) -> Message:
    if len(data) > MAX_HEAD_BYTES:
        seen = f"the message has {len(data):,} bytes"
        raise ValueError(f"{seen}; here it may have {MAX_HEAD_BYTES:,} at most")
    return parse(data)


class RpcServer:
    """Started and stopped with the app."""

    def __init__(self, gateway: Gateway, app: ASGIApp) -> None:
        self._settings = gateway.settings
        self._server = aio.server(interceptors=[Short()], options=_options(gateway.settings))
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]
        self._server.add_generic_rpc_handlers((_handlers(gateway, app),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (SERVICE.full_name, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)

    async def start(self) -> None:
        """Listen; raises ConfigurationError if the port is taken or a certificate unusable."""
        self._bind()
        await self._server.start()
        for name in ("", SERVICE.full_name):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    async def stop(self) -> None:
        """Refuse new calls, let streams end, then cancel what is left."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(GRACE_S)

    def _bind(self) -> None:
        place = address(self._settings.host, self._settings.grpc_port)
        try:
            credentials = _credentials(self._settings)
            if credentials is None:
                self._server.add_insecure_port(place)
            else:
                self._server.add_secure_port(place, credentials)
        except (RuntimeError, OSError) as error:
            raise ConfigurationError(f"gRPC can't listen on {place}: {error}") from error


def _handlers(gateway: Gateway, app: ASGIApp) -> grpc.GenericRpcHandler[Any, Any]:
    """One for each call of the contract."""
    calls = Calls(gateway, app)
    special = {
        "Stream": Walk(gateway).stream,
        "GetVideo": calls.file("GetVideo"),
        "GetVideoContent": calls.file("GetVideoContent"),
        "GetMemoryPoints": calls.file("GetMemoryPoints"),
        "Export": calls.export,
        "Import": calls.take_in,
        "WatchGeneration": calls.watch,
    }
    handlers = {}
    for method in SERVICE.methods:
        kind = KINDS[method.server_streaming]
        handlers[method.name] = kind(
            special.get(method.name) or calls.unary(method.name),
            response_serializer=GetMessageClass(method.output_type).SerializeToString,
        )
    return grpc.method_handlers_generic_handler(SERVICE.full_name, handlers)


def _options(settings: Settings) -> list[tuple[str, int]]:
    largest = FORM_FILES * settings.max_upload_bytes + FORM_OVERHEAD_BYTES
    return [
        ("grpc.max_receive_message_length", largest),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", 16_384),
        ("grpc.keepalive_time_ms", PING_MS),
        ("grpc.keepalive_timeout_ms", PONG_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
        ("grpc.so_reuseport", 0),  # a second gateway on this port is a mistake
        # Pings that measure a connection wake both ends; without them a client sends so far ahead
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", AHEAD_BYTES),
    ]


def check_certificates(settings: Settings) -> None:
    """Raises ConfigurationError for files of TLS that can't be used; gRPC logs why, and goes on."""
    cert, key = settings.grpc_tls_cert, settings.grpc_tls_key
    if not cert:
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with _usable(f"MIRAGE_GRPC_TLS_CERT={cert!r} with MIRAGE_GRPC_TLS_KEY={key!r}"):
        context.load_cert_chain(cert, key, password="")  # else OpenSSL asks the terminal for one
    if authority := settings.grpc_tls_client_ca:
        with _usable(f"MIRAGE_GRPC_TLS_CLIENT_CA={authority!r}"):
            context.load_verify_locations(authority)


@contextmanager
def _usable(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # ssl.SSLError is one
        raise ConfigurationError(
            f"{what} can't be used ({error.strerror or error}): give PEM files that this process "
            "may read, a certificate with its own key, without a password"
        ) from error


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
