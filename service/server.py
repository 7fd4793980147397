"""The HTTP server of a gateway: uvicorn, told how to stop, with sockets that notice the dead.

On SIGTERM streams say goodbye first (with the number to come back with and a proper close code) and
end by themselves; then uvicorn closes what is left. TCP_USER_TIMEOUT lets the kernel end
connections whose peer no longer takes what is sent, which neither pings nor writes would notice
while the buffer is full.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Any

import uvicorn
from fastapi import FastAPI

from service.gateway import Gateway
from service.http import BoundedHttp
from service.limits import MAX_STREAM_MESSAGE_BYTES
from service.settings import Settings

GRACE_S = 5  # for requests that run when the gateway stops
GOODBYE_S = 2.0  # of it: for streams to end by themselves
POLL_S = 0.02
PING_S, PONG_S = 20.0, 20.0
UNTAKEN_MS = 30_000  # what was sent and is not taken for so long: the peer is gone


class GatewayServer(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._app = app

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let streams say goodbye, then stop as uvicorn does."""
        gateway: Gateway = self._app.state.gateway
        gateway.closing.set()
        for server in self.servers:
            server.close()  # nobody new
        try:
            async with asyncio.timeout(GOODBYE_S):
                while gateway.open_streams:  # noqa: ASYNC110 - counted, not awaited, elsewhere
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            pass  # uvicorn ends them
        await super().shutdown(sockets)


def serve(app: FastAPI, settings: Settings) -> bool:
    """Run until a signal; whether it ever ran."""
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=GRACE_S,
        **PROTOCOLS,
    )
    logging.getLogger("uvicorn.error").addFilter(_tells_no_address)
    server = GatewayServer(config, app)
    server.run(sockets=[listening(config)])
    return server.started


def _tells_no_address(record: logging.LogRecord) -> bool:
    """uvicorn repeats the address of each WebSocket, tickets included; our log has its path."""
    return '"WebSocket' not in str(record.msg)


def listening(config: uvicorn.Config, untaken_ms: int = UNTAKEN_MS) -> socket.socket:
    """The bound socket; connections that it accepts inherit the time limit."""
    bound = config.bind_socket()
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
        bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, untaken_ms)
    return bound


PROTOCOLS: dict[str, Any] = {
    "http": BoundedHttp,
    "ws": "websockets-sansio",
    "ws_max_size": MAX_STREAM_MESSAGE_BYTES,
    "ws_per_message_deflate": False,  # pictures don't get any smaller
    "ws_ping_interval": PING_S,
    "ws_ping_timeout": PONG_S,
}
