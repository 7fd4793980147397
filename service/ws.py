"""The WebSocket form of the stream: JSON text for messages, and after each frame's head one binary
message with its encoded image."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated

from fastapi import APIRouter, Query, WebSocket, WebSocketDisconnect
from pydantic import ValidationError
from redis.exceptions import RedisError

from service.auth.principal import Scope, requires
from service.errors import FieldProblem, InvalidRequest, MirageError, problem_of
from service.gateway import Gateway, GatewayDep
from service.rest.problems import control_plane_down, invalid_request
from service.schemas import CLIENT_MESSAGE
from service.stream import ClientMessage, ServerMessage, converse, error_message

router = APIRouter(tags=["stream"])


@router.websocket("/v1/sessions/{session_id}/stream")
@requires(Scope.WALK)
async def stream(
    websocket: WebSocket,
    session_id: str,
    gateway: GatewayDep,
    after: Annotated[int | None, Query(ge=-1, le=2**53)] = None,
) -> None:
    """Walk through a world. `after`: the last frame the client has; it gets all that follow."""
    await websocket.accept()
    gateway.metrics.streams.inc()
    try:
        await _serve(websocket, gateway, session_id, after)
    except WebSocketDisconnect:
        pass  # the client has gone; so may we
    except MirageError as error:
        await _refuse(websocket, error)
    except RedisError as error:
        await _refuse(websocket, control_plane_down(error))
    finally:
        gateway.metrics.streams.dec()


async def _serve(
    websocket: WebSocket, gateway: Gateway, session_id: str, after: int | None
) -> None:
    async with aclosing(converse(gateway, session_id, _incoming(websocket), after)) as messages:
        async for message in messages:
            await _send(websocket, message)
            if message.body is not None:
                gateway.metrics.delivered("websocket", len(message.body))


async def _incoming(websocket: WebSocket) -> AsyncIterator[ClientMessage | InvalidRequest]:
    """Messages until the client leaves; what can't be read is passed on as the error it is."""
    while True:
        received = await websocket.receive()
        if received["type"] == "websocket.disconnect":
            return
        text = received.get("text")
        if text is None:
            problem = FieldProblem("message", "a binary message", "JSON text")
            yield InvalidRequest("Clients send text only.", fields=(problem,))
            continue
        try:
            yield CLIENT_MESSAGE.validate_json(text)
        except ValidationError as error:
            yield invalid_request(error)


async def _send(websocket: WebSocket, message: ServerMessage) -> None:
    await websocket.send_text(json.dumps(message.head))
    if message.body is not None:
        await websocket.send_bytes(message.body)


async def _refuse(websocket: WebSocket, error: MirageError) -> None:
    """Say why, then close with the error's code; the client may be gone already."""
    try:
        await _send(websocket, error_message(error))
        await websocket.close(problem_of(error).close_code, error.detail[:100])
    except (WebSocketDisconnect, RuntimeError):
        return
