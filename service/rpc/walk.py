"""mirage.v1.World/Stream: the conversation of service/stream, with gRPC around it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from redis.exceptions import RedisError
from structlog.contextvars import bound_contextvars

from service.auth.principal import Scope
from service.errors import FieldProblem, InvalidRequest, MirageError
from service.gateway import Gateway
from service.rest.problems import control_plane_down
from service.rpc.calls import Context, headers_of
from service.rpc.problems import refuse
from service.stream.conversation import converse
from service.stream.messages import Incoming, OpenMessage, from_proto
from service.telemetry import REQUEST_ID_HEADER, accepted_request_id
from service.wire import world_pb2 as pb

Requests = AsyncIterator[pb.ClientMessage]


class Walk:
    """The handler of Stream."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def stream(self, requests: Requests, context: Context) -> AsyncIterator[pb.ServerMessage]:
        headers = headers_of(context)
        request_id = accepted_request_id(headers.get(REQUEST_ID_HEADER))
        try:
            with self._gateway.streaming():
                async with aclosing(self._talk(requests, headers, request_id)) as messages:
                    async for message in messages:
                        yield message
        except MirageError as error:
            self._gateway.metrics.refused(error)
            truth = await self._gateway.control.rebuild.doubted(error)
            await refuse(context, truth, request_id)
        except RedisError as error:
            await refuse(context, control_plane_down(error), request_id)

    async def _talk(
        self, requests: Requests, headers: dict[str, str], request_id: str
    ) -> AsyncGenerator[pb.ServerMessage, None]:
        gateway = self._gateway
        opening = await _opening(requests)
        with bound_contextvars(request_id=request_id, session=opening.session):
            principal = await gateway.guard.admit(headers, Scope.READ, opening.session)
            talk = converse(gateway, principal, opening, _incoming(requests))
            async with aclosing(talk) as messages:
                async for message in messages:
                    yield message
                    if message.HasField("frame"):
                        gateway.metrics.delivered("grpc", len(message.frame.image))


async def _opening(requests: Requests) -> OpenMessage:
    async for request in requests:
        message = from_proto(request)
        if isinstance(message, InvalidRequest):
            raise message
        if isinstance(message, OpenMessage):
            return message
        break
    problem = FieldProblem("message", "something else", "`open`, with the session")
    raise InvalidRequest("A stream begins with `open`.", fields=(problem,))


async def _incoming(requests: Requests) -> AsyncIterator[Incoming]:
    """A client that has said all it wants to still listens; one that leaves cancels the call."""
    async for request in requests:
        yield from_proto(request)
    await asyncio.Event().wait()
