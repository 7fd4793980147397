"""One owner has so many streams open at a gateway: each costs memory, an H.264 encoder most."""

from __future__ import annotations

import asyncio

import grpc
import httpx
import pytest
import websockets
from fastapi import FastAPI
from grpc import aio
from named_things import opened
from tenants import NewKey
from ws_opening import first_word

from service.settings import Settings
from service.wire import world_pb2 as pb
from service.wire import world_pb2_grpc


@pytest.fixture
def keyed(settings: Settings) -> Settings:
    return settings.model_copy(update={"require_keys": True, "max_streams_per_key": 2})


async def test_websockets(
    app: FastAPI, address: str, ann: httpx.AsyncClient, anns: str, new_key: NewKey
) -> None:
    url = f"ws://{address}/v1/sessions/{anns}/stream"
    headers = {"authorization": ann.headers["authorization"]}
    second = {"authorization": f"Bearer {await new_key('ann')}"}
    sockets = [await websockets.connect(url, additional_headers=headers) for _ in range(2)]
    for socket in sockets:
        await socket.recv()
    for credential in (headers, second):  # another key of the same owner
        refused = await first_word(url, **credential)
        assert refused["code"] == 4429 and "2 streams open" in str(refused["detail"])
    await sockets[0].close()
    async with asyncio.timeout(60):
        while len(app.state.gateway.open_streams) > 1:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert (await first_word(url, **headers))["type"] == "hello"
    await sockets[1].close()


async def test_grpc(channel: aio.Channel, new_key: NewKey) -> None:
    world = world_pb2_grpc.WorldStub(channel)
    said = []
    for owner in ("ann", "ann", "bob"):
        key = await new_key(owner)
        opening = pb.ClientMessage(open=pb.Open(session=(await opened(channel, key)).id))
        call = world.Stream(metadata=(("authorization", f"Bearer {key}"),))
        await call.write(opening)
        assert (await call.read()).WhichOneof("message") == "hello"
        said.append((call, key, opening))
    _, key, opening = said[0]
    refused = world.Stream(metadata=(("authorization", f"Bearer {key}"),))
    await refused.write(opening)
    with pytest.raises(aio.AioRpcError) as error:
        await refused.read()
    assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    for call, *_ in said:
        call.cancel()
