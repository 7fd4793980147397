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

from service.app import create_app
from service.control import ControlPlane
from service.embedded import free_port
from service.settings import Settings


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
        async with httpx.AsyncClient(transport=transport, base_url="http://mirage") as client:
            yield client


@pytest.fixture
async def server_url(
    settings: Settings, control: ControlPlane, samples: Path
) -> AsyncIterator[str]:
    """The same app on a port of the loopback."""
    port = free_port()
    config = uvicorn.Config(
        create_app(settings, samples),
        port=port,
        log_config=None,
        ws="websockets-sansio",
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - uvicorn has a flag, no event
        await asyncio.sleep(0.01)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    await task


@pytest.fixture
async def session(http: httpx.AsyncClient) -> str:
    """The id of a session that nobody works on yet."""
    answer = await http.post("/v1/sessions", files={"image": png()})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])
