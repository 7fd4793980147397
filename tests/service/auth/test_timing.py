"""Another's world answers as late as none: nobody learns from the clock what exists.

Each endpoint, call, opening and message of a stream is asked about both, one right after the
other, in an order that is drawn (taking turns keeps step with what happens every so many calls, as
collecting garbage does: 0.39 or 0.64 of nothing). If both take the same path it is a coin that says
which was slower, however busy the machine is; a longer path is slower nearly every time. What looks
loaded is asked again, more often, before it is believed.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

import grpc
import httpx
import pytest
from fastapi import FastAPI
from grpc import aio
from named_things import names_of, naming_asks, never_was, opened
from rest_routes import concrete, routes
from rpc_requests import NOBODYS, OF_A_WORLD, about, refused
from tenants import NewKey
from uploads_made import png

from service.control.plane import ControlPlane
from service.wire import world_pb2 as pb
from service.wire import world_pb2_grpc

PAIRS, AGAIN = 10, 32  # of each endpoint; where the first look loaded
OPENINGS, AGAIN_OPENED = 200, 400  # of one kind of stream, or message
# from half of the pairs; one more question to Redis makes 0.12 (WebSocket, busy machine) to 0.3
SUSPECT, LOADED = 0.05, 0.08

Ask = Callable[[str], Awaitable[float]]  # about a session: until it is not found, in seconds


async def slower(ask: Ask, session: str, pairs: int) -> int:
    """In how many pairs the session took longer than one that never was."""
    count, draw = 0, random.Random(pairs)
    for _ in range(pairs):
        order = draw.sample((session, NOBODYS), 2)
        took_s = {which: await ask(which) for which in order}
        count += took_s[session] > took_s[NOBODYS]
    return count


async def check_all(asks: Mapping[str, Ask], session: str, pairs: int, again: int) -> None:
    """Neither all of them together nor any of them alone tells the two apart."""

    async def counts(pairs: int) -> list[int]:
        return [await slower(ask, session, pairs) for ask in asks.values()]

    first = await counts(pairs)
    share = sum(first) / (pairs * len(asks))
    if abs(share - 0.5) > SUSPECT:
        share = sum(await counts(again)) / (again * len(asks))
    assert abs(share - 0.5) < LOADED, share
    for (name, ask), count in zip(asks.items(), first, strict=True):
        if count in (0, pairs):
            count = await slower(ask, session, AGAIN)
            assert 2 < count < AGAIN - 2, f"{name}: {count} of {AGAIN} slower"


async def test_anothers_world_takes_as_long_as_none(
    app: FastAPI, bob: httpx.AsyncClient, anns: str
) -> None:
    async def ask(method: str, route: Any, session: str) -> float:
        began_s = time.perf_counter()
        answer = await bob.request(method, concrete(route, session), json={})
        assert answer.status_code == 404
        return time.perf_counter() - began_s

    asks: dict[str, Ask] = {
        f"{method} {route.path}": partial(ask, method, route)
        for route in routes(app)
        for method in sorted(getattr(route, "methods", None) or ())
        if {"session_id", "video_id"} & set(route.param_convertors)
    }
    assert len(asks) >= 16
    await check_all(asks, anns, PAIRS, AGAIN)


@pytest.fixture
async def anns_by_rpc(channel: aio.Channel, new_key: NewKey) -> str:
    """A session of Ann's at the gateway that `channel` leads to."""
    mine = (("authorization", f"Bearer {await new_key('ann')}"),)
    asked = pb.CreateSessionRequest(image=png())
    return str((await world_pb2_grpc.WorldStub(channel).CreateSession(asked, metadata=mine)).id)


async def test_nor_does_any_call(channel: aio.Channel, anns_by_rpc: str, new_key: NewKey) -> None:
    world, bob = world_pb2_grpc.WorldStub(channel), await new_key("bob")

    async def ask(name: str, session: str) -> float:
        began_s = time.perf_counter()
        code, *_ = await refused(world, name, about(name, session), bob)
        assert code is grpc.StatusCode.NOT_FOUND
        return time.perf_counter() - began_s

    asks: dict[str, Ask] = {name: partial(ask, name) for name in OF_A_WORLD}
    await check_all(asks, anns_by_rpc, PAIRS, AGAIN)


async def test_nor_do_anothers_names_beside_a_world_of_ones_own(
    channel: aio.Channel, anns_by_rpc: str, new_key: NewKey, control: ControlPlane
) -> None:
    bob = await new_key("bob")
    known = await names_of(channel, control, await new_key("ann"))

    async def ask(asking: Callable[[str], Awaitable[object]], kind: str, session: str) -> float:
        name = never_was(known[kind]) if session == NOBODYS else known[kind]
        began_s = time.perf_counter()
        await asking(name)
        return time.perf_counter() - began_s

    every = naming_asks(channel, bob, (await opened(channel, bob)).id)
    asks = {call: partial(ask, asking, kind) for (call, kind), asking in every.items()}
    await check_all(asks, anns_by_rpc, PAIRS, AGAIN)


async def test_nor_does_a_message_within_a_stream(
    channel: aio.Channel, anns_by_rpc: str, new_key: NewKey
) -> None:
    """`cancel`, which alone names something (test_indistinct.py)."""
    world, bob, ann = world_pb2_grpc.WorldStub(channel), await new_key("bob"), await new_key("ann")
    anns, bobs = await opened(channel, ann), await opened(channel, bob)
    call = world.Stream(metadata=(("authorization", f"Bearer {bob}"),))
    await call.write(pb.ClientMessage(open=pb.Open(session=bobs.id)))

    async def ask(session: str) -> float:
        name = never_was(anns.init_request) if session == NOBODYS else anns.init_request
        began_s = time.perf_counter()
        await call.write(pb.ClientMessage(sequence=1, cancel=pb.Cancel(id=name)))
        while not (await call.read()).reply_to:
            pass
        return time.perf_counter() - began_s

    await check_all({"cancel": ask}, anns_by_rpc, OPENINGS, AGAIN_OPENED)
    call.cancel()


async def test_nor_does_opening_a_stream(
    channel: aio.Channel, anns_by_rpc: str, new_key: NewKey
) -> None:
    world = world_pb2_grpc.WorldStub(channel)
    theirs = (("authorization", f"Bearer {await new_key('bob')}"),)

    async def ask(session: str) -> float:
        began_s = time.perf_counter()
        call = world.Stream(metadata=theirs)
        await call.write(pb.ClientMessage(open=pb.Open(session=session)))
        with pytest.raises(aio.AioRpcError) as error:
            await call.read()
        assert error.value.code() is grpc.StatusCode.NOT_FOUND
        return time.perf_counter() - began_s

    await check_all({"Stream": ask}, anns_by_rpc, OPENINGS, AGAIN_OPENED)


async def test_nor_does_opening_a_websocket(address: str, anns: str, new_key: NewKey) -> None:
    """By hand, as a client's library takes ten times as long as the question that might be told."""
    host, _, port = address.partition(":")
    bob = await new_key("bob")
    asked = (
        "GET /v1/sessions/{} /stream HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n"
        f"Upgrade: websocket\r\nAuthorization: Bearer {bob}\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )

    async def ask(session: str) -> float:
        reader, writer = await asyncio.open_connection(host, int(port))
        began_s = time.perf_counter()
        writer.write(asked.replace("{} ", session).encode())
        await reader.readuntil(b'"status": 404')
        took_s = time.perf_counter() - began_s
        writer.close()
        await writer.wait_closed()
        return took_s

    await check_all({"WebSocket": ask}, anns, OPENINGS, AGAIN_OPENED)
