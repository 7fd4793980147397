"""Another's world and none: the same answer to the last header, and the same questions to Redis.

What a clock could tell (test_timing.py) begins with what is asked; that can be compared exactly,
however busy the machine is. Each name is compared with one that differs in its last digit.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from typing import Any

import httpx
import pytest
import websockets
from fastapi import FastAPI
from grpc import aio
from named_things import Ask, answered, names_of, naming_asks, never_was, opened
from rest_routes import concrete, routes
from rpc_requests import OF_A_WORLD, about
from tenants import NewKey
from websockets.exceptions import ConnectionClosed

from service.control.plane import ControlPlane
from service.wire import world_pb2 as pb
from service.wire import world_pb2_grpc

Heard = Callable[[], Awaitable[list[str]]]
GREETINGS = ("HELLO", "CLIENT", "SELECT")  # of a connection that is new


@pytest.fixture
async def heard(control: ControlPlane) -> AsyncIterator[Heard]:
    """What Redis was asked since the last call."""
    redis: Any = control.redis
    async with redis.monitor() as monitor:

        async def since() -> list[str]:
            mark, commands = secrets.token_hex(8), []
            await redis.echo(mark)
            while mark not in (command := (await monitor.next_command())["command"]):
                if not command.startswith(GREETINGS):
                    commands.append(command)
            return commands

        yield since


async def check(
    asks: Mapping[str, tuple[Ask, str]], heard: Heard, background: bool = False
) -> None:
    """`background`: others ask Redis meanwhile, so only what has the name in it is compared."""
    for call, (ask, name) in asks.items():
        await ask(never_was(name))  # so that scripts are loaded
        found = []
        for one in (name, never_was(name)):
            await heard()
            answer = await ask(one)
            asked = [word for word in await heard() if not background or one in word]
            assert asked, call
            found.append(repr((answer, asked)).replace(one, "NAME"))
        assert found[0] == found[1], call


async def test_over_rest(app: FastAPI, bob: httpx.AsyncClient, anns: str, heard: Heard) -> None:
    async def ask(method: str, route: Any, session: str) -> object:
        headers = {"x-request-id": "r"}
        answer = await bob.request(method, concrete(route, session), json={}, headers=headers)
        assert answer.status_code == 404
        return answer.headers.multi_items(), answer.text

    asks = {
        f"{method} {route.path}": (partial(ask, method, route), anns)
        for route in routes(app)
        for method in sorted(getattr(route, "methods", None) or ())
        if {"session_id", "video_id"} & set(route.param_convertors)
    }
    assert len(asks) >= 16
    await check(asks, heard)


@pytest.fixture
async def mine(channel: aio.Channel, new_key: NewKey) -> str:
    return await new_key("bob")


async def test_over_grpc(channel: aio.Channel, new_key: NewKey, mine: str, heard: Heard) -> None:
    world: Any = world_pb2_grpc.WorldStub(channel)
    anns = (await opened(channel, await new_key("ann"))).id

    async def ask(call: str, session: str) -> object:
        answer = await answered(world, call, about(call, session), mine)
        assert "unknown-session" in str(answer)
        return answer

    await check({call: (partial(ask, call), anns) for call in OF_A_WORLD}, heard)


async def test_anothers_names_beside_a_world_of_ones_own(
    channel: aio.Channel, new_key: NewKey, mine: str, control: ControlPlane, heard: Heard
) -> None:
    """Requests, share links, snapshots, and where a list goes on."""
    bobs = (await opened(channel, mine)).id
    known = await names_of(channel, control, await new_key("ann"))
    asks = naming_asks(channel, mine, bobs)
    await check({call: (ask, known[kind]) for (call, kind), ask in asks.items()}, heard)


async def test_credentials_whose_secret_is_wrong(
    channel: aio.Channel, new_key: NewKey, mine: str, heard: Heard
) -> None:
    """Of a key or share link that there is, and of none."""
    world: Any = world_pb2_grpc.WorldStub(channel)
    anns, metadata = (await opened(channel, mine)).id, (("authorization", f"Bearer {mine}"),)
    share = await world.CreateShare(pb.CreateShareRequest(session=anns), metadata=metadata)
    request = pb.GetSessionRequest(session=anns)

    async def ask(kind: str, name: str) -> object:
        return await answered(world, "GetSession", request, f"{kind}_{name}_{'a' * 43}")

    known = {"mk": mine[3:15], "ms": share.id}
    await check({kind: (partial(ask, kind), name) for kind, name in known.items()}, heard)


async def test_opening_a_stream(
    channel: aio.Channel, new_key: NewKey, mine: str, heard: Heard
) -> None:
    world: Any = world_pb2_grpc.WorldStub(channel)
    anns = (await opened(channel, await new_key("ann"))).id

    async def ask(session: str) -> object:
        opening = pb.ClientMessage(open=pb.Open(session=session))
        answer = await answered(world, "Stream", iter([opening]), mine)  # type: ignore[arg-type]
        assert "NOT_FOUND" in str(answer)
        return answer

    await check({"Stream": (ask, anns)}, heard)


async def test_opening_a_websocket(address: str, anns: str, new_key: NewKey, heard: Heard) -> None:
    headers = {"authorization": f"Bearer {await new_key('bob')}", "x-request-id": "r"}

    async def ask(session: str) -> object:
        url, said = f"ws://{address}/v1/sessions/{session}/stream", []
        async with websockets.connect(url, additional_headers=headers) as socket:
            try:
                async for message in socket:
                    said.append(message)
            except ConnectionClosed:
                pass
            assert socket.response is not None and socket.close_code == 4404
            heads = {name.lower(): value for name, value in socket.response.headers.raw_items()}
            del heads["sec-websocket-accept"], heads["date"]
            return heads, said, socket.close_code, socket.close_reason

    await check({"WebSocket": (ask, anns)}, heard)


async def test_messages_within_a_stream(
    channel: aio.Channel, new_key: NewKey, mine: str, heard: Heard
) -> None:
    """Of what a client says, only `cancel` names something: a request."""
    world: Any = world_pb2_grpc.WorldStub(channel)
    bobs, anns = await opened(channel, mine), await opened(channel, await new_key("ann"))
    call = world.Stream(metadata=(("authorization", f"Bearer {mine}"),))
    await call.write(pb.ClientMessage(open=pb.Open(session=bobs.id)))

    async def ask(name: str) -> object:
        await call.write(pb.ClientMessage(sequence=7, cancel=pb.Cancel(id=name)))
        async with asyncio.timeout(60):
            while not (said := await call.read()).reply_to:
                pass
        assert said.error.type.endswith("unknown-request"), said
        said.sequence = 0
        return str(said)

    await check({"cancel": (ask, anns.init_request)}, heard, background=True)
    call.cancel()


def test_messages_name_nothing_else() -> None:
    """A message of a stream that is new, or says something new, has to be thought of here."""
    texts = {
        f"{message.name}.{field.name}"
        for message in pb.ClientMessage.DESCRIPTOR.oneofs_by_name["message"].fields
        for field in message.message_type.fields
        if field.type == field.TYPE_STRING
    }
    assert texts == {"open.session", "cancel.id", "input.keys"}
