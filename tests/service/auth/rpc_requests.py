"""Every call about a world or a name, and how it is refused."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc.status_pb2 import Status
from grpc import aio

from service.rpc.calls import ROUTES, SERVICE
from service.wire import world_pb2 as pb

NOBODYS = f"s{0:023}"


def is_about_a_world(path: str) -> bool:
    return "{session}" in path or "/videos/{id}" in path


OF_A_WORLD = [name for name, route in ROUTES.items() if is_about_a_world(route.path)]
# what else a request may name, and of what kind that is
NAMED = {
    ("GetGeneration", "id"): "generation",
    ("CancelGeneration", "id"): "generation",
    ("WatchGeneration", "id"): "generation",
    ("GetVideo", "id"): "generation",
    ("ListGenerations", "cursor"): "generation",
    ("RevokeShare", "id"): "share",
    ("ForkShared", "share"): "credential",
    ("ForgetSnapshot", "name"): "snapshot",
    ("Export", "snapshot"): "snapshot",
    ("ListSessions", "cursor"): "session",
    ("ListVideos", "after"): "video",
}
NAMES_NOTHING = {  # of a tenant's; or what only the worker of one's own session looks up
    "CreateSession.sample", "CreateSession.memory", "CreateGeneration.webhook", "Fork.snapshot",
    "ForkShared.snapshot", "Rewind.snapshot", "Snapshot.name", "CreateShare.may",
    "CreateVideo.actions", "CreateVideo.prompt", "CreateVideo.model", "CreateVideo.size",
    "CreateVideo.webhook", "GetVideoContent.variant", "GetSamplePicture.name",
}  # fmt: skip


def about(name: str, session: str) -> Message:
    """A request of this call, about this world."""
    request: Any = GetMessageClass(SERVICE.methods_by_name[name].input_type)()
    path = ROUTES[name].path
    for field in request.DESCRIPTOR.fields:
        if f"{{{field.name}}}" in path and field.type == field.TYPE_STRING:
            setattr(request, field.name, "r_1")
    if "/videos/" in path:
        request.id = f"video_{session}"
    else:
        request.session = session
    return request


def naming(name: str, field: str, value: str, session: str) -> Message:
    """A request of this call about a world of one's own, with one field that names something."""
    request: Any = GetMessageClass(SERVICE.methods_by_name[name].input_type)()
    if "session" in request.DESCRIPTOR.fields_by_name:
        request.session = session
    setattr(request, field, value)
    return request


async def refused(world: Any, name: str, request: Message, credential: str) -> tuple[Any, ...]:
    """How a call ends: code, message, details, without the ids in them."""
    metadata = (("authorization", f"Bearer {credential}"), ("x-request-id", "r"))
    with pytest.raises(aio.AioRpcError) as error:
        call = getattr(world, name)(request, metadata=metadata)
        if SERVICE.methods_by_name[name].server_streaming:
            await call.read()
        else:
            await call
    packed = dict(error.value.trailing_metadata() or ())["grpc-status-details-bin"]
    problem = pb.Problem()
    assert Status.FromString(packed).details[0].Unpack(problem)
    return error.value.code(), error.value.details(), problem.type, problem.detail
