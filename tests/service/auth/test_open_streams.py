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

from service.auth.keyring import Keyring
from service.control.plane import ControlPlane
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


async def test_guests_take_none_of_the_owners(
    app: FastAPI, address: str, ann: httpx.AsyncClient, anns: str
) -> None:
    url = f"ws://{address}/v1/sessions/{anns}/stream"
    share = (await ann.post(f"/v1/sessions/{anns}/shares")).json()["credential"]
    guest = {"authorization": f"Bearer {share}"}
    async with websockets.connect(url, additional_headers=guest) as socket:
        await socket.recv()
        refused = await first_word(url, **guest)  # a link has half of what its owner has
        assert refused["code"] == 4429 and "guests of this share link" in str(refused["detail"])
        owner = {"authorization": ann.headers["authorization"]}
        async with (
            websockets.connect(url, additional_headers=owner) as one,
            websockets.connect(url, additional_headers=owner) as other,
        ):
            for mine in (one, other):
                assert '"hello"' in str(await mine.recv())


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


async def test_followers_of_events_count_and_end_with_their_key(
    app: FastAPI,
    address: str,
    ann: httpx.AsyncClient,
    anns: str,
    new_key: NewKey,
    control: ControlPlane,
) -> None:
    asked = {"actions": [{"yaw_deg": 4}]}  # for ever queued: there is no worker
    url = f"/v1/sessions/{anns}/generations"
    url += f"/{(await ann.post(url, json=asked)).json()['id']}/events"
    key = await new_key("ann")
    headers = {"authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=f"http://{address}", headers=headers, timeout=60) as http:
        async with http.stream("GET", url) as first, http.stream("GET", url) as second:
            texts = [answer.aiter_text() for answer in (first, second)]
            assert all(["queued" in await anext(text) for text in texts])
            refused = await ann.get(url)
            assert refused.status_code == 429 and "2 streams open" in refused.json()["detail"]
            await Keyring(control.redis, control.kept).revoke(key.split("_")[1])
            for text in texts:
                async with asyncio.timeout(60):
                    said = "".join([piece async for piece in text])
                assert "event: error" in said and "urn:mirage:problem:unauthenticated" in said
    assert not app.state.gateway.open_streams


async def test_a_watched_generation_ends_with_its_key(
    channel: aio.Channel, new_key: NewKey, control: ControlPlane
) -> None:
    world, key = world_pb2_grpc.WorldStub(channel), await new_key("ann")
    mine = (("authorization", f"Bearer {key}"),)
    made = await opened(channel, key)
    path = pb.Path(actions=[pb.Action(yaw_deg=4)])
    asked = pb.CreateGenerationRequest(session=made.id, path=path)
    walk = await world.CreateGeneration(asked, metadata=mine)
    named = pb.WatchGenerationRequest(session=made.id, id=walk.id)
    call = world.WatchGeneration(named, metadata=mine)
    assert (await call.read()).progress.state == pb.GENERATION_STATE_QUEUED
    await Keyring(control.redis, control.kept).revoke(key.split("_")[1])
    with pytest.raises(aio.AioRpcError) as ended:
        async with asyncio.timeout(60):
            await call.read()
    assert ended.value.code() is grpc.StatusCode.UNAUTHENTICATED
