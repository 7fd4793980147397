"""The WebSocket form of the stream.

Subprotocol `mirage.v1.proto`: one binary message per ClientMessage and ServerMessage. Without it,
or as `mirage.v1.json`, for people: JSON text, and after a frame's head its picture (and its
planes) as binary messages. What `Open` says on gRPC stands in the address here, as in `?after=12`.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from pydantic import ValidationError
from redis.exceptions import RedisError
from starlette.websockets import WebSocketState

from service.auth.principal import PrincipalDep, Scope, requires
from service.errors import FieldProblem, InvalidRequest, MirageError, close_of
from service.gateway import Gateway, GatewayDep
from service.rest.problems import control_plane_down, invalid_request
from service.rest.queries import check_once
from service.stream import answers
from service.stream.conversation import converse
from service.stream.messages import Incoming, OpenMessage, from_bytes, from_text
from service.telemetry import Metrics
from service.wire import world_pb2 as pb

router = APIRouter(tags=["stream"])

TEXT, BINARY = "mirage.v1.json", "mirage.v1.proto"
SERVICE_RESTART = 1012
LISTS = ("cameras", "planes")
OF_THE_GATE = ("ticket",)  # in the query, but not about the stream


class Socket:
    """One connection, in the notation that its client chose."""

    def __init__(self, websocket: WebSocket, session_id: str = "") -> None:
        self._websocket, self._session_id = websocket, session_id
        self._gateway: Gateway = websocket.app.state.gateway
        offered = websocket.scope["subprotocols"]
        self.protocol = next((one for one in offered if one in (TEXT, BINARY)), None)

    async def accept(self) -> None:
        await self._websocket.accept(subprotocol=self.protocol)

    async def incoming(self) -> AsyncIterator[Incoming]:
        """Messages until the client leaves; what can't be read is passed on as an error."""
        while True:
            received = await self._websocket.receive()
            if received["type"] == "websocket.disconnect":
                return
            yield self._read(received.get("text"), received.get("bytes"))

    async def send(self, message: pb.ServerMessage) -> None:
        if self.protocol == BINARY:
            await self._websocket.send_bytes(message.SerializeToString())
            return
        await self._websocket.send_text(json.dumps(answers.as_text(message, self._session_id)))
        if message.HasField("frame"):
            await self._websocket.send_bytes(message.frame.image)
            for plane in message.frame.planes:
                await self._websocket.send_bytes(plane.data)

    async def refuse(self, error: MirageError) -> None:
        """Say why, then close with the error's code; the client may be gone already."""
        try:
            if self._websocket.application_state is WebSocketState.CONNECTING:
                await self.accept()  # else a browser learns nothing of the reason
            await self.send(pb.ServerMessage(error=answers.problem(error)))
            await self._websocket.close(*close_of(error))
        except (WebSocketDisconnect, RuntimeError):
            return

    def _read(self, text: str | None, data: bytes | None) -> Incoming:
        if self.protocol == BINARY and data is not None:
            return from_bytes(data, self._gateway.settings.max_path_poses)
        if self.protocol != BINARY and text is not None:
            return from_text(text)
        seen, allowed = ("JSON text", "binary messages") if data is None else (
            "a binary message", "JSON text",
        )  # fmt: skip
        problem = FieldProblem("message", seen, allowed)
        return InvalidRequest(f"This stream speaks {allowed}.", fields=(problem,))


@router.websocket("/v1/sessions/{session_id}/stream")
@requires(Scope.READ)  # looking on; what moves or changes the world asks for more
async def stream(
    websocket: WebSocket, session_id: str, gateway: GatewayDep, principal: PrincipalDep
) -> None:
    """Walk through a world. The query is what `Open` says elsewhere, as in `?after=12&format=h264`;
    `after`: the last frame the client has; it gets all that follow."""
    socket = Socket(websocket, session_id)
    await socket.accept()
    try:
        with gateway.streaming(principal.caller):
            opening = opening_of(session_id, websocket.query_params.multi_items())
            talk = converse(gateway, principal, opening, socket.incoming())
            await _pass_on(socket, talk, gateway.metrics)
        if gateway.closing.is_set():
            await websocket.close(SERVICE_RESTART, "come back with `after`")
    except WebSocketDisconnect:
        pass  # the client has gone; so may we
    except MirageError as error:
        gateway.metrics.refused(error)
        await socket.refuse(await gateway.control.rebuild.doubted(error))
    except RedisError as error:
        await socket.refuse(control_plane_down(error))


async def _pass_on(
    socket: Socket, talk: AsyncGenerator[pb.ServerMessage, None], metrics: Metrics
) -> None:
    async with aclosing(talk) as messages:
        async for message in messages:
            await socket.send(message)
            if message.HasField("frame"):
                metrics.delivered("websocket", len(message.frame.image))


def opening_of(session_id: str, query: list[tuple[str, str]]) -> OpenMessage:
    """From the address: lists are repeated or have commas. Raises InvalidRequest, also for a query
    that names another session than the path, which is the one that the caller was let in to.
    """
    once = [one for one in query if one[0] not in (*LISTS, *OF_THE_GATE)]
    check_once([("session", session_id), *once])
    values: dict[str, Any] = {"session": session_id}
    for name, value in query:
        if name in LISTS:
            values.setdefault(name, []).extend(value.split(","))
        elif name not in OF_THE_GATE:
            values[name] = value
    try:
        return OpenMessage.model_validate(values)
    except ValidationError as error:
        raise invalid_request(error) from None
