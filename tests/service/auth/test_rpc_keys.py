"""gRPC and keys: a world of somebody else is one that never was, for every call and the stream."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from google.protobuf.empty_pb2 import Empty
from grpc import aio
from rpc_requests import NAMED, NAMES_NOTHING, NOBODYS, OF_A_WORLD, about, refused
from tenants import NewKey
from uploads_made import png

from service.auth.keyring import Keyring
from service.auth.principal import Scope
from service.control.plane import ControlPlane
from service.rpc.calls import ROUTES, SERVICE
from service.wire import world_pb2 as pb
from service.wire import world_pb2_grpc


def test_every_call_and_field_is_thought_of() -> None:
    """What is new has to be added to rpc_requests.py, so that the tests of this folder ask it."""
    assert {*ROUTES, "Stream"} == {method.name for method in SERVICE.methods}
    texts = {
        (method.name, field.name)
        for method in SERVICE.methods
        for field in method.input_type.fields
        if field.type == field.TYPE_STRING
    }
    worlds = {(name, "id" if "/videos/" in ROUTES[name].path else "session") for name in OF_A_WORLD}
    silent = {tuple(one.split(".")) for one in NAMES_NOTHING}
    assert texts == worlds | set(NAMED) | silent
    assert not worlds & set(NAMED) and not silent & (worlds | set(NAMED))


async def test_who_has_no_key_is_refused_before_he_says_anything(channel: aio.Channel) -> None:
    """A message may have 63 MB, and the event loop is everybody's."""
    public = {name for name, route in ROUTES.items() if route.is_public}
    asked = {method.name for method in SERVICE.methods} - public
    for name in sorted(asked):
        call = channel.stream_stream(f"/{SERVICE.full_name}/{name}")()
        async with asyncio.timeout(60):
            assert await call.code() is grpc.StatusCode.UNAUTHENTICATED, name
    samples = await world_pb2_grpc.WorldStub(channel).ListSamples(Empty())
    asked = pb.GetSamplePictureRequest(name=samples.samples[0].name)
    assert (await world_pb2_grpc.WorldStub(channel).GetSamplePicture(asked)).data


async def test_a_call_is_counted_once(channel: aio.Channel, new_key: NewKey) -> None:
    world = world_pb2_grpc.WorldStub(channel)
    for name in ("GetSession", "GetFrame", "Export"):
        key = await new_key("ann", requests_per_s=0.001)  # the first is free
        told = [(await refused(world, name, about(name, NOBODYS), key))[0].name for _ in range(2)]
        assert told == ["NOT_FOUND", "RESOURCE_EXHAUSTED"], name


async def test_anothers_world_is_not_found_by_any_call(
    channel: aio.Channel, new_key: NewKey
) -> None:
    world = world_pb2_grpc.WorldStub(channel)
    ann, bob = await new_key("ann"), await new_key("bob")
    mine = (("authorization", f"Bearer {ann}"),)
    anns = (await world.CreateSession(pb.CreateSessionRequest(image=png()), metadata=mine)).id
    assert len(OF_A_WORLD) >= 23
    for name in OF_A_WORLD:
        answers = []
        for session in (anns, NOBODYS):
            answer = await refused(world, name, about(name, session), bob)
            answers.append([str(part).replace(session, "ID") for part in answer])
        assert answers[0] == answers[1], name
        assert answers[0][0] == str(grpc.StatusCode.NOT_FOUND), name
        assert answers[0][2] == "urn:mirage:problem:unknown-session", name
    assert (await world.GetSession(pb.GetSessionRequest(session=anns), metadata=mine)).id == anns


async def test_a_stream_needs_a_key_of_its_worlds_owner(
    channel: aio.Channel, new_key: NewKey
) -> None:
    world = world_pb2_grpc.WorldStub(channel)
    ann, bob, metrics = (
        await new_key("ann"),
        await new_key("bob"),
        await new_key("x", Scope.METRICS),
    )
    mine = (("authorization", f"Bearer {ann}"),)
    anns = (await world.CreateSession(pb.CreateSessionRequest(image=png()), metadata=mine)).id

    async def first_word(credential: str, session: str) -> tuple[Any, str]:
        metadata = (("authorization", f"Bearer {credential}"),) if credential else ()
        call = world.Stream(metadata=metadata)
        await call.write(pb.ClientMessage(open=pb.Open(session=session)))
        try:
            said = await call.read()
        except aio.AioRpcError as error:
            return error.code(), (error.details() or "").replace(session, "ID")
        call.cancel()
        return None, said.WhichOneof("message")

    assert await first_word(ann, anns) == (None, "hello")
    assert await first_word(bob, anns) == await first_word(bob, NOBODYS)
    assert (await first_word(bob, anns))[0] is grpc.StatusCode.NOT_FOUND
    assert (await first_word("", anns))[0] is grpc.StatusCode.UNAUTHENTICATED
    assert (await first_word(metrics, anns))[0] is grpc.StatusCode.PERMISSION_DENIED


async def test_shares_and_tickets(channel: aio.Channel, new_key: NewKey) -> None:
    world = world_pb2_grpc.WorldStub(channel)
    mine = (("authorization", f"Bearer {await new_key('ann')}"),)
    anns = (await world.CreateSession(pb.CreateSessionRequest(image=png()), metadata=mine)).id
    asked = pb.CreateShareRequest(session=anns, may="walk", lifetime_s=60)
    share = await world.CreateShare(asked, metadata=mine)
    assert share.may == "walk" and share.expires_at.seconds > 0
    theirs = (("authorization", f"Bearer {share.credential}"),)
    shared = pb.GetSessionRequest(session=anns)
    assert (await world.GetSession(shared, metadata=theirs)).id == anns
    listed = await world.ListShares(pb.ListSharesRequest(session=anns), metadata=mine)
    assert [(one.id, one.credential) for one in listed.shares] == [(share.id, "")]
    await world.RevokeShare(pb.RevokeShareRequest(session=anns, id=share.id), metadata=mine)
    with pytest.raises(aio.AioRpcError) as ended:
        await world.GetSession(shared, metadata=theirs)
    assert ended.value.code() is grpc.StatusCode.UNAUTHENTICATED
    ticket = await world.CreateTicket(pb.CreateTicketRequest(session=anns), metadata=mine)
    assert ticket.ticket and ticket.expires_at.seconds > 0


async def test_a_stream_ends_soon_after_its_key(
    channel: aio.Channel, new_key: NewKey, control: ControlPlane
) -> None:
    world, key = world_pb2_grpc.WorldStub(channel), await new_key("ann")
    mine = (("authorization", f"Bearer {key}"),)
    anns = (await world.CreateSession(pb.CreateSessionRequest(image=png()), metadata=mine)).id
    call = world.Stream(metadata=mine)
    await call.write(pb.ClientMessage(open=pb.Open(session=anns)))
    assert (await call.read()).WhichOneof("message") == "hello"
    await Keyring(control.redis, control.kept).revoke(key.split("_")[1])
    with pytest.raises(aio.AioRpcError) as ended:
        async with asyncio.timeout(60):
            while True:
                await call.read()
    assert ended.value.code() is grpc.StatusCode.UNAUTHENTICATED
