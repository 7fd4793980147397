"""mirage.v1.World: the calls, each a few lines over what REST and the WebSocket use too."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from redis.exceptions import RedisError

from service.auth.principal import Scope
from service.errors import FieldProblem, InvalidRequest, MirageError
from service.gateway import Gateway
from service.rest.problems import control_plane_down
from service.rpc.problems import refuse
from service.stream.conversation import converse
from service.stream.messages import Incoming, OpenMessage, from_proto
from service.wire import world_pb2 as pb
from service.wire import world_pb2_grpc

Context = Any  # grpc.aio.ServicerContext; its stubs are generic in types that handlers don't share


class World(world_pb2_grpc.WorldServicer):
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def Stream(
        self, request_iterator: AsyncIterator[pb.ClientMessage], context: Context
    ) -> AsyncIterator[pb.ServerMessage]:
        metrics = self._gateway.metrics
        metrics.streams.inc()
        try:
            opening = await _opening(request_iterator)
            headers = _headers(context)
            await self._gateway.guard.admit(headers, Scope.WALK, opening.session)
            incoming = _incoming(request_iterator)
            async with aclosing(converse(self._gateway, opening, incoming)) as messages:
                async for message in messages:
                    yield message
                    if message.HasField("frame"):
                        metrics.delivered("grpc", len(message.frame.image))
        except MirageError as error:
            await refuse(context, error, "")
        except RedisError as error:
            await refuse(context, control_plane_down(error), "")
        finally:
            metrics.streams.dec()


def _headers(context: Context) -> dict[str, str]:
    pairs = context.invocation_metadata() or ()
    return {name: value for name, value in pairs if isinstance(value, str)}


async def _opening(requests: AsyncIterator[pb.ClientMessage]) -> OpenMessage:
    async for request in requests:
        message = from_proto(request)
        if isinstance(message, InvalidRequest):
            raise message
        if isinstance(message, OpenMessage):
            return message
        break
    problem = FieldProblem("message", "something else", "`open`, with the session")
    raise InvalidRequest("A stream begins with `open`.", fields=(problem,))


async def _incoming(requests: AsyncIterator[pb.ClientMessage]) -> AsyncIterator[Incoming]:
    async for request in requests:
        yield from_proto(request)
