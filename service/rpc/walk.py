"""mirage.v1.World/Stream: the conversation of service/stream, with gRPC around it.

Messages are read and written by the call's own methods; what grpc.aio puts around generators costs
two more of them per message.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import structlog
from grpc import aio
from redis.exceptions import RedisError
from structlog.contextvars import bound_contextvars

from service.auth.principal import Scope
from service.errors import DEFECT, INTERNAL, FieldProblem, InvalidRequest, MirageError
from service.gateway import Gateway
from service.limits import MAX_STREAM_MESSAGE_BYTES
from service.rest.problems import control_plane_down
from service.rpc.calls import Context, Requests, headers_of
from service.rpc.problems import note_request_id, refuse, refuse_document
from service.rpc.reading import is_longer
from service.stream.conversation import converse
from service.stream.messages import Incoming, OpenMessage, from_bytes
from service.telemetry import REQUEST_ID_HEADER, accepted_request_id
from service.wire import world_pb2 as pb

LOG = structlog.get_logger("mirage.gateway")
EOF = aio.EOF  # type: ignore[attr-defined]
OPENING_S = 30.0  # for the first message


class Walk:
    """The handler of Stream."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def stream(self, _: Requests, context: Context) -> None:
        headers = headers_of(context)
        request_id = accepted_request_id(headers.get(REQUEST_ID_HEADER))
        note_request_id(context, request_id)
        try:
            await self._talk(context, headers, request_id)
        except MirageError as error:
            self._gateway.metrics.refused(error)
            truth = await self._gateway.control.rebuild.doubted(error)
            await refuse(context, truth, request_id)
        except RedisError as error:
            await refuse(context, control_plane_down(error), request_id)
        except Exception as error:  # a defect, of which grpc would tell the client all
            LOG.error("unforeseen", error=repr(error), request_id=request_id, exc_info=error)
            await refuse_document(context, INTERNAL.document(DEFECT) | {"request_id": request_id})

    async def _talk(self, context: Context, headers: dict[str, str], request_id: str) -> None:
        gateway = self._gateway
        principal = await gateway.guard.authenticate(headers)
        max_poses = gateway.settings.max_path_poses
        opening = await _opening(context, max_poses)
        with bound_contextvars(request_id=request_id, session=opening.session):
            await gateway.guard.permit(principal, Scope.READ, opening.session)
            talk = converse(gateway, principal, opening, _incoming(context, max_poses))
            with gateway.streaming(principal.caller):
                await self._pass_on(talk, context)

    async def _pass_on(
        self, talk: AsyncGenerator[pb.ServerMessage, None], context: Context
    ) -> None:
        async with aclosing(talk) as messages:
            async for message in messages:
                await context.write(message)
                if message.HasField("frame"):
                    self._gateway.metrics.delivered("grpc", len(message.frame.image))


async def _opening(context: Context, max_poses: int) -> OpenMessage:
    try:
        async with asyncio.timeout(OPENING_S):
            request = await context.read()
    except TimeoutError:
        request = EOF
    message = None if request is EOF else read(request, max_poses)
    if isinstance(message, InvalidRequest):
        raise message
    if isinstance(message, OpenMessage):
        return message
    problem = FieldProblem("message", "nothing or another", "`open`, with the session")
    raise InvalidRequest("A stream begins with `open`.", fields=(problem,))


async def _incoming(context: Context, max_poses: int) -> AsyncIterator[Incoming]:
    """A client that has said all it wants to still listens; one that leaves cancels the call."""
    while (request := await context.read()) is not EOF:
        yield read(request, max_poses)
    await asyncio.Event().wait()


def read(data: bytes, max_poses: int) -> Incoming:
    """A message, or what is wrong with it: as over a WebSocket, but with pictures of any size."""
    if is_longer(data, pb.ClientMessage, MAX_STREAM_MESSAGE_BYTES):
        allowed = f"at most {MAX_STREAM_MESSAGE_BYTES:,} bytes beside pictures"
        problem = FieldProblem("message", f"{len(data):,} bytes", allowed)
        return InvalidRequest("This message is too long.", fields=(problem,))
    return from_bytes(data, max_poses)
