"""One conversation with a session: client messages in, server messages out, whatever the transport.

How: two tasks fill one short outbox. One listens to the client and appends to the request log; the
other follows the frame bus, the session's state and the requests of this stream. Frames are
numbered, so a client that comes back says `after` and nothing is lost while the service still holds
it. Poses are live (the newest wins), paths and actions are rendered whole. Trade-off: the outbox is
short, so a slow client holds back its own reading, never the session, and goes on where it stopped.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from service.errors import InvalidRequest, MirageError, UnknownRequest, problem_document
from service.gateway import Gateway
from service.paths import append_path
from service.poses import flat
from service.requests import LivePose, Progress, RequestState
from service.rest.answers import frame_out, generation_out
from service.schemas import CancelMessage, PathMessage, PingMessage, PoseMessage
from service.sessions import Session
from service.tasks import end

PROTOCOL = 1
OUTBOX_LENGTH = 8
FRAME_WAIT_S = 0.5  # how soon a change that makes no frame (state, failure) is noticed
FRAMES_AT_ONCE = 8

ClientMessage = PoseMessage | PathMessage | CancelMessage | PingMessage


@dataclass(frozen=True)
class ServerMessage:
    """A JSON-able head; a frame has its encoded image as body."""

    head: dict[str, Any]
    body: bytes | None = None


@dataclass
class Conversation:
    """What both tasks share."""

    gateway: Gateway
    session_id: str
    after: int  # number of the last frame the client has
    outbox: asyncio.Queue[ServerMessage] = field(
        default_factory=lambda: asyncio.Queue(OUTBOX_LENGTH)
    )
    requests: dict[str, Progress] = field(default_factory=dict)  # of this stream, not final yet


async def converse(
    gateway: Gateway,
    session_id: str,
    incoming: AsyncIterator[ClientMessage | InvalidRequest],
    after: int | None = None,
) -> AsyncGenerator[ServerMessage, None]:
    """Yield what the client should get, until `incoming` ends.

    `after`: the last frame the client has; None = only frames that are made from now on. Raises
    MirageError when the session can't be followed any more (unknown, deleted, frames gone).
    """
    session = await gateway.control.sessions.get(session_id)
    talk = Conversation(gateway, session_id, session.next_frame - 1 if after is None else after)
    yield _hello(gateway, session, talk.after)
    tasks = [asyncio.create_task(_listen(talk, incoming)), asyncio.create_task(_follow(talk))]
    try:
        while not any(task.done() for task in tasks):
            message = await _next(talk, tasks)
            if message is not None:
                yield message
        await end(tasks)  # from here on nothing is added to the outbox
        while not talk.outbox.empty():
            yield talk.outbox.get_nowait()
        for task in tasks:
            if not task.cancelled():
                task.result()  # raises what ended it
    finally:
        await end(tasks)


async def _next(talk: Conversation, tasks: list[asyncio.Task[None]]) -> ServerMessage | None:
    """The next message, or None once a task has ended."""
    if not talk.outbox.empty():
        return talk.outbox.get_nowait()
    getting = asyncio.create_task(talk.outbox.get())
    try:
        await asyncio.wait([getting, *tasks], return_when=asyncio.FIRST_COMPLETED)
        return getting.result() if getting.done() else None
    finally:
        getting.cancel()


async def _listen(
    talk: Conversation, incoming: AsyncIterator[ClientMessage | InvalidRequest]
) -> None:
    async for message in incoming:
        try:
            if isinstance(message, InvalidRequest):
                raise message
            await _handle(talk, message)
        except MirageError as error:  # the client's next message may be fine
            await talk.outbox.put(error_message(error))


async def _handle(talk: Conversation, message: ClientMessage) -> None:
    control, settings = talk.gateway.control, talk.gateway.settings
    match message:
        case PoseMessage():
            pose = flat(message.pose(message.axes, "pose"))
            live = LivePose(
                pose=pose, sequence=message.sequence, client_time_ms=message.client_time_ms
            )
            await control.requests.append(talk.session_id, live)
        case PathMessage():
            progress = await append_path(control, talk.session_id, message, settings.max_path_poses)
            talk.requests[progress.id] = progress
            await _tell(talk, "accepted", generation_out(progress).model_dump(mode="json"))
        case CancelMessage():
            progress = await control.requests.cancel(talk.session_id, message.id)
            await _tell(talk, "progress", generation_out(progress).model_dump(mode="json"))
        case PingMessage():
            await _tell(talk, "pong", {"client_time_ms": message.client_time_ms})


async def _follow(talk: Conversation) -> None:
    """Frames as they are made, then whatever else changed."""
    control, told = talk.gateway.control, None
    while True:
        frames = await control.frames.read(
            talk.session_id, talk.after, wait_s=FRAME_WAIT_S, limit=FRAMES_AT_ONCE
        )
        session = await control.sessions.get(talk.session_id)
        size = {"num_points": session.num_points, "num_bytes": session.num_bytes}
        for frame in frames:
            head = frame_out(frame, talk.session_id).model_dump(mode="json")
            await talk.outbox.put(ServerMessage({"type": "frame", **head, **size}, frame.image))
            talk.after = frame.frame
        state = {"state": session.state.value, "error": session.error}
        if state != told:
            told = state
            await _tell(talk, "state", state | size)
        await _report_requests(talk)


async def _report_requests(talk: Conversation) -> None:
    """Say how the requests of this stream ended; their frames went out before."""
    for request_id in list(talk.requests):
        try:
            progress = await talk.gateway.control.requests.get(talk.session_id, request_id)
        except UnknownRequest:  # so long ago that its record made room for others
            del talk.requests[request_id]
            continue
        if _is_over(progress, talk.after):
            del talk.requests[request_id]
            await _tell(talk, "progress", generation_out(progress).model_dump(mode="json"))


def _is_over(progress: Progress, after: int) -> bool:
    sent = progress.last_frame is None or progress.last_frame <= after
    return progress.state.is_final and (sent or progress.state is not RequestState.DONE)


async def _tell(talk: Conversation, kind: str, values: dict[str, Any]) -> None:
    await talk.outbox.put(ServerMessage({"type": kind, **values}))


def _hello(gateway: Gateway, session: Session, after: int) -> ServerMessage:
    width, height = gateway.frame_size
    return ServerMessage(
        {
            "type": "hello",
            "protocol": PROTOCOL,
            "session": session.id,
            "state": session.state.value,
            "after": after,
            "num_frames": session.next_frame,
            "width": width,
            "height": height,
        }
    )


def error_message(error: MirageError) -> ServerMessage:
    """A problem as a message; its URI is `problem`, as `type` says what kind of message it is."""
    document = problem_document(error)
    return ServerMessage({**document, "problem": document["type"], "type": "error"})
