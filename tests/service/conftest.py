"""A gateway for tests: in process for REST, on a real port for WebSockets and the SDK."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import uvicorn
from uploads_made import npy, png
from uvicorn_server import serving

from service.app import create_app
from service.auth.guard import Guard
from service.control.plane import ControlPlane
from service.gateway import Gateway
from service.local.embedded import free_port
from service.samples import Samples
from service.server import PROTOCOLS, GatewayServer
from service.settings import Settings
from service.telemetry import Metrics
from service.video_cache import VideoCache
from service.webhooks import Webhooks


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    """A folder with one sample world."""
    folder = tmp_path / "samples"
    folder.mkdir()
    (folder / "attic.png").write_bytes(png())
    (folder / "attic.depth.npy").write_bytes(npy(np.full((64, 96), 2.0, np.float32)))
    card = {"title": "Attic", "description": "dusty", "fov_deg": 80, "path": []}
    (folder / "attic.json").write_text(json.dumps(card))
    return folder


@pytest.fixture
async def http(
    settings: Settings, control: ControlPlane, samples: Path
) -> AsyncIterator[httpx.AsyncClient]:
    """Talks to an app of its own, without a network."""
    app = create_app(settings, samples)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            yield client


@pytest.fixture
def gateway(settings: Settings, control: ControlPlane, tmp_path: Path) -> Gateway:
    """What all endpoints share, without an app."""
    guard = Guard(control.redis, control.kept, required=False)
    shared = Samples(tmp_path), Metrics(), VideoCache(0), Webhooks(control, settings)
    return Gateway(settings, control, guard, *shared, asyncio.Semaphore(2))


@pytest.fixture
def ports() -> tuple[int, int]:
    """Of HTTP and gRPC."""
    return free_port(), free_port()


@pytest.fixture
async def server_url(
    settings: Settings, control: ControlPlane, samples: Path, ports: tuple[int, int]
) -> AsyncIterator[str]:
    """The same app on ports of the loopback."""
    app = create_app(settings.model_copy(update={"grpc_port": ports[1]}), samples)
    server = GatewayServer(
        uvicorn.Config(
            app,
            port=ports[0],
            log_config=None,
            timeout_graceful_shutdown=1,
            **PROTOCOLS,
        ),
        app,
    )
    async with serving(server):
        yield f"http://127.0.0.1:{ports[0]}"


@pytest.fixture
def grpc_address(server_url: str, ports: tuple[int, int]) -> str:
    """Where the same server speaks gRPC."""
    return f"127.0.0.1:{ports[1]}"


@pytest.fixture
async def session(http: httpx.AsyncClient) -> str:
    """The id of a session that nobody works on yet."""
    answer = await http.post("/v1/sessions", files={"image": png()})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])
