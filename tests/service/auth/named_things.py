"""What a tenant has that has a name, and calls that name it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from google.protobuf.message import Message
from google.rpc.status_pb2 import Status
from grpc import aio
from rpc_requests import NAMED, naming
from uploads_made import png

from service.control import keys
from service.control.plane import ControlPlane
from service.rpc.calls import SERVICE
from service.rpc.problems import DETAILS
from service.wire import world_pb2 as pb
from service.wire import world_pb2_grpc

Ask = Callable[[str], Awaitable[object]]  # about a name: all that its client gets
SPELT = {"credential": f"ms_{{}}_{'a' * 43}", "video": "video_{}"}  # where a name has more to it


def never_was(name: str) -> str:
    return name[:-1] + ("1" if name.endswith("0") else "0")


async def answered(world: Any, call: str, request: Message, credential: str) -> object:
    """How a call ends: its answer, or its error with everything around it."""
    sent = (("authorization", f"Bearer {credential}"), ("x-request-id", "r"))
    running = getattr(world, call)(request, metadata=sent)
    try:
        if SERVICE.methods_by_name[call].server_streaming:
            return [str(one) async for one in running]
        return str(await running)
    except aio.AioRpcError as error:
        initial, trailing = error.initial_metadata(), dict(error.trailing_metadata() or ())
        status = Status.FromString(trailing.pop(DETAILS))
        return error.code(), error.details(), initial, trailing, str(status)


async def opened(channel: aio.Channel, credential: str) -> pb.Session:
    metadata = (("authorization", f"Bearer {credential}"),)
    asked = pb.CreateSessionRequest(image=png())
    return await world_pb2_grpc.WorldStub(channel).CreateSession(asked, metadata=metadata)


async def names_of(channel: aio.Channel, control: ControlPlane, credential: str) -> dict[str, str]:
    """One of each kind that a tenant has."""
    world: Any = world_pb2_grpc.WorldStub(channel)
    session, metadata = (
        await opened(channel, credential),
        (("authorization", f"Bearer {credential}"),),
    )
    share = await world.CreateShare(pb.CreateShareRequest(session=session.id), metadata=metadata)
    await control.redis.hset(keys.names(session.id), "attic", "{}")  # type: ignore[misc]
    return {
        "generation": session.init_request,
        "share": share.id,
        "credential": share.id,
        "snapshot": "attic",
        "session": session.id,
        "video": session.id,
    }


def naming_asks(channel: aio.Channel, credential: str, session: str) -> dict[tuple[str, str], Ask]:
    """Calls about a world of one's own that name something else, by call and kind."""
    world: Any = world_pb2_grpc.WorldStub(channel)

    async def ask(call: str, field: str, form: str, name: str) -> object:
        request = naming(call, field, form.format(name), session)
        return await answered(world, call, request, credential)

    return {
        (call, kind): partial(ask, call, field, SPELT.get(kind, "{}"))
        for (call, field), kind in NAMED.items()
    }
