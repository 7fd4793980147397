"""Streams and keys: who may open one, and what others learn."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import httpx
import pytest
import uvicorn
import websockets
from fastapi import FastAPI
from tenants import NewKey
from uploads_made import png
from websockets.exceptions import ConnectionClosed

from service.auth.principal import Scope
from service.embedded import free_port


@pytest.fixture
async def address(app: FastAPI) -> AsyncIterator[str]:
    port = free_port()
    config = uvicorn.Config(
        app, port=port, log_config=None, lifespan="off", ws="websockets-sansio",
        timeout_graceful_shutdown=1,
    )  # fmt: skip
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - uvicorn has a flag, no event
        await asyncio.sleep(0.01)
    yield f"127.0.0.1:{port}"
    server.should_exit = True
    await task


async def first_word(url: str, **headers: str) -> dict[str, object]:
    """The first message; a close code if there is no other."""
    async with websockets.connect(url, additional_headers=headers) as socket:
        message = dict(json.loads(await socket.recv()))
        if message["type"] == "error":
            with pytest.raises(ConnectionClosed) as closed:
                await socket.recv()
            assert closed.value.rcvd is not None
            message["code"] = closed.value.rcvd.code
        return message


async def test_streams_need_keys_too(
    address: str, ann: httpx.AsyncClient, anns: str, new_key: NewKey
) -> None:
    url = f"ws://{address}/v1/sessions/{anns}/stream"
    bearer = "authorization"
    assert (await first_word(url))["code"] == 4401
    reader, bob = await new_key("ann", Scope.READ), await new_key("bob")
    foreign = await first_word(url, **{bearer: f"Bearer {bob}"})
    assert foreign["code"] == 4404
    unknown = await first_word(f"ws://{address}/v1/sessions/s1/stream", **{bearer: f"Bearer {bob}"})
    assert json.dumps(unknown).replace("s1", anns) == json.dumps(foreign)
    assert (await first_word(url, **{bearer: ann.headers[bearer]}))["type"] == "hello"
    assert (await first_word(url, Origin="https://evil.example"))["code"] == 4403
    assert (await first_word(url, **{bearer: f"Bearer {reader}"}))["type"] == "hello"


async def test_who_may_only_look_moves_nothing(address: str, anns: str, new_key: NewKey) -> None:
    url = f"ws://{address}/v1/sessions/{anns}/stream"
    reader = {"authorization": f"Bearer {await new_key('ann', Scope.READ)}"}
    walker = {"authorization": f"Bearer {await new_key('ann', Scope.READ, Scope.WALK)}"}
    pose = '{"type": "pose", "position": [0, 0, 0], "quaternion": [0, 0, 0, 1]}'
    for headers, said, needs in (
        (reader, pose, "walk"),
        (reader, '{"type": "input", "keys": ["w"]}', "walk"),
        (reader, '{"type": "path", "actions": [{"forward_m": 1}]}', "walk"),
        (reader, '{"type": "cancel", "id": "r"}', "walk"),
        (walker, '{"type": "seek", "frame": 0}', "write"),
        (walker, '{"type": "fork"}', "write"),
    ):
        async with websockets.connect(url, additional_headers=headers) as socket:
            await socket.send(said)
            while (answer := json.loads(await socket.recv()))["type"] != "error":
                pass
            assert answer["status"] == 403 and f"`{needs}`" in answer["detail"]


async def test_a_ticket_opens_one_stream_of_one_world(
    address: str, ann: httpx.AsyncClient, anns: str
) -> None:
    other = (await ann.post("/v1/sessions", files={"image": png()})).json()["id"]
    tickets = [(await ann.post(f"/v1/sessions/{anns}/tickets")).json()["ticket"] for _ in range(2)]
    url = f"ws://{address}/v1/sessions/{anns}/stream?ticket="
    assert (await first_word(url + tickets[0]))["type"] == "hello"
    assert (await first_word(url + tickets[0]))["code"] == 4401
    elsewhere = f"ws://{address}/v1/sessions/{other}/stream?ticket={tickets[1]}"
    assert (await first_word(elsewhere))["code"] == 4404
