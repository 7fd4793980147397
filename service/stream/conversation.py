"""One conversation with a session: client messages in, server messages out, whatever the transport.

How: two tasks fill one short outbox. One listens to the client and appends to the request log; the
other follows the frame bus, the session's state and the requests of this stream. Frames are
numbered, so a client that comes back says `after` and nothing is lost while the service still holds
it. Poses are live (the newest wins), paths and actions are rendered whole. Trade-off: the outbox is
short, so a slow client holds back its own reading, never the session, and goes on where it stopped.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from service.errors import FieldProblem, InvalidRequest, MirageError, UnknownRequest
from service.gateway import Gateway
from service.paths import append_path
from service.poses import flat
from service.requests import LivePose, Progress, RequestState
from service.sessions import SessionState
from service.stream import answers
from service.stream.messages import (
    AnyMessage,
    CancelMessage,
    Incoming,
    OpenMessage,
    PathMessage,
    PingMessage,
    PoseMessage,
)
from service.stream.outbox import Outbox
from service.tasks import end
from service.wire import world_pb2 as pb

OUTBOX_LENGTH = 8
FRAME_WAIT_S = 0.5  # how soon a change that makes no frame (state, failure) is noticed
FRAMES_AT_ONCE = 8
RETURN_S = 1.0  # when a client whose gateway stops should come back


@dataclass
class Conversation:
    """What the tasks share."""

    gateway: Gateway
    session_id: str
    after: int  # number of the last frame the client has
    outbox: Outbox = field(default_factory=lambda: Outbox(OUTBOX_LENGTH))
    requests: dict[str, Progress] = field(default_factory=dict)  # of this stream, not final yet
    told: tuple[SessionState, dict[str, Any] | None] | None = None  # the state, as the client knows

    async def say(self, message: pb.ServerMessage, reply_to: int = 0) -> None:
        message.reply_to = reply_to
        await self.outbox.put(message)


async def converse(
    gateway: Gateway, opening: OpenMessage, incoming: AsyncIterator[Incoming]
) -> AsyncGenerator[pb.ServerMessage, None]:
    """Yield what the client should get, until `incoming` ends or the gateway stops.

    Raises MirageError when the session can't be followed any more (unknown, deleted, frames gone).
    """
    session = await gateway.control.sessions.get(opening.session)
    after = session.next_frame - 1 if opening.after is None else opening.after
    talk = Conversation(gateway, session.id, after)
    tasks = [
        asyncio.create_task(work)
        for work in (_listen(talk, incoming), _follow(talk), gateway.closing.wait())
    ]
    for task in tasks:
        task.add_done_callback(lambda _: talk.outbox.close())
    sequence = 1
    try:
        yield _numbered(answers.hello(session, after), sequence)
        while (message := await talk.outbox.get()) is not None:
            sequence += 1
            yield _numbered(message, sequence)
        await end(tasks[:2])
        for task in tasks:
            if task.done() and not task.cancelled():
                task.result()  # raises what ended it
        if gateway.closing.is_set():
            yield _numbered(_goodbye(talk), sequence + 1)
    finally:
        await end(tasks)


def _numbered(message: pb.ServerMessage, sequence: int) -> pb.ServerMessage:
    message.sequence = sequence
    return message


def _goodbye(talk: Conversation) -> pb.ServerMessage:
    reason = "this gateway stops; come back with `after`"
    return pb.ServerMessage(
        goodbye=pb.Goodbye(after=talk.after, retry_after_s=RETURN_S, reason=reason)
    )


async def _listen(talk: Conversation, incoming: AsyncIterator[Incoming]) -> None:
    async for message in incoming:
        sequence = getattr(message, "sequence", 0)
        try:
            if isinstance(message, MirageError):
                raise message
            await _handle(talk, message)
        except MirageError as error:  # the client's next message may be fine
            await talk.say(pb.ServerMessage(error=answers.problem(error)), sequence)


async def _handle(talk: Conversation, message: AnyMessage) -> None:
    control, settings = talk.gateway.control, talk.gateway.settings
    match message:
        case PoseMessage():
            pose = flat(message.pose(message.axes, "pose"))
            live = LivePose(
                pose=pose,
                camera=message.camera,
                sequence=message.sequence,
                client_time_ms=message.client_time_ms,
            )
            await control.requests.append(talk.session_id, live)
        case PathMessage():
            progress = await append_path(control, talk.session_id, message, settings.max_path_poses)
            talk.requests[progress.id] = progress
            accepted = pb.ServerMessage(accepted=answers.generation(progress))
            await talk.say(accepted, message.sequence)
        case CancelMessage():
            progress = await control.requests.cancel(talk.session_id, message.id)
            cancelled = pb.ServerMessage(progress=answers.generation(progress))
            await talk.say(cancelled, message.sequence)
        case PingMessage():
            pong = pb.ServerMessage(pong=answers.pong(message.client_time_ms))
            await talk.say(pong, message.sequence)
        case OpenMessage():
            problem = FieldProblem("open", "a second one", "at the beginning, or in the address")
            raise InvalidRequest("The stream is open already.", fields=(problem,))


async def _follow(talk: Conversation) -> None:
    """Frames as they are pushed; now and then, or when there are none, whatever else changed."""
    now, looked_s = asyncio.get_running_loop().time, -math.inf
    async with talk.gateway.control.feed.watch(talk.session_id) as watch:
        while True:
            frames = await watch.read(talk.after, wait_s=FRAME_WAIT_S, limit=FRAMES_AT_ONCE)
            for frame in frames:
                await talk.say(pb.ServerMessage(frame=answers.frame_message(frame)))
                talk.after = frame.frame
            if not frames or talk.requests or now() - looked_s > FRAME_WAIT_S:
                looked_s = now()
                await _look(talk)


async def _look(talk: Conversation) -> None:
    """Tell the session's state if it has changed, and how this stream's requests ended."""
    session = await talk.gateway.control.sessions.get(talk.session_id)
    state = (session.state, session.error)
    if state != talk.told:
        talk.told = state
        await talk.say(pb.ServerMessage(state=answers.status(session)))
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
            await talk.say(pb.ServerMessage(progress=answers.generation(progress)))


def _is_over(progress: Progress, after: int) -> bool:
    sent = progress.last_frame is None or progress.last_frame <= after
    return progress.state.is_final and (sent or progress.state is not RequestState.DONE)
