"""A gateway that requires keys, and two tenants."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from grpc import aio
from tenants import Connect, NewKey
from uploads_made import png
from uvicorn_server import serving

from service.app import create_app
from service.auth.keyring import Keyring
from service.auth.principal import KEY_SCOPES, Scope
from service.control.plane import ControlPlane
from service.local.embedded import free_port
from service.settings import Settings


@pytest.fixture
def keyed(settings: Settings) -> Settings:
    return settings.model_copy(update={"require_keys": True})


@pytest.fixture
def new_key(control: ControlPlane) -> NewKey:
    """Makes a key and returns its text."""

    async def make(owner: str, *scopes: Scope, **fields: Any) -> str:
        keyring = Keyring(control.redis, control.kept)
        return (await keyring.create(owner, frozenset(scopes or KEY_SCOPES), **fields))[1]

    return make


@pytest.fixture
async def app(keyed: Settings, control: ControlPlane, samples: Path) -> AsyncIterator[FastAPI]:
    app = create_app(keyed, samples)
    async with app.router.lifespan_context(app):
        yield app


@pytest.fixture
async def client_of(app: FastAPI) -> AsyncIterator[Connect]:
    """A client that sends this credential ("" = none)."""
    async with AsyncExitStack() as stack:

        def connect(credential: str) -> httpx.AsyncClient:
            transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
            headers = {"Authorization": f"Bearer {credential}"} if credential else {}
            client = httpx.AsyncClient(
                transport=transport, base_url="http://localhost", headers=headers
            )
            stack.push_async_callback(client.aclose)
            return client

        yield connect


@pytest.fixture
async def ann(client_of: Connect, new_key: NewKey) -> httpx.AsyncClient:
    return client_of(await new_key("ann"))


@pytest.fixture
async def bob(client_of: Connect, new_key: NewKey) -> httpx.AsyncClient:
    return client_of(await new_key("bob"))


@pytest.fixture
async def anns(ann: httpx.AsyncClient) -> str:
    """The id of a session of Ann's."""
    answer = await ann.post("/v1/sessions", files={"image": png()})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


@pytest.fixture
async def channel(keyed: Settings, control: ControlPlane, samples: Path) -> AsyncIterator[Any]:
    port = free_port()
    app = create_app(keyed.model_copy(update={"grpc_port": port}), samples)
    async with app.router.lifespan_context(app), aio.insecure_channel(f"127.0.0.1:{port}") as one:
        yield one


@pytest.fixture
async def address(app: FastAPI) -> AsyncIterator[str]:
    port = free_port()
    config = uvicorn.Config(
        app, port=port, log_config=None, lifespan="off", ws="websockets-sansio",
        timeout_graceful_shutdown=1,
    )  # fmt: skip
    server = uvicorn.Server(config)
    async with serving(server):
        yield f"127.0.0.1:{port}"
