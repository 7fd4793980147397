"""One conversation with a session: client messages in, server messages out, whatever the transport.

How: tasks fill one short outbox. One listens to the client (handling.py), one follows the frames
(following.py), one feeds paths piece by piece, one moves cameras while keys are held, one keeps the
session alive, one asks whether the client may still be here, one counts what a limited key pays for
(budget.py). Frames are numbered, so a client that comes back says `after`, and the `branch` of that
frame, and nothing is lost while the service still holds it. Trade-off: the outbox is short, so a
slow client holds back its own reading, never the session, and goes on where it stopped.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

from service.auth.guard import CONFIRM_S
from service.auth.principal import Principal
from service.gateway import Gateway
from service.limits import RETURN_S
from service.stream import answers
from service.stream.following import follow
from service.stream.handling import feed_paths, listen, move_cameras
from service.stream.messages import Incoming, OpenMessage
from service.stream.resuming import resume_after
from service.stream.talk import Talk
from service.tasks import end
from service.wire import world_pb2 as pb


async def converse(
    gateway: Gateway,
    principal: Principal,
    opening: OpenMessage,
    incoming: AsyncIterator[Incoming],
) -> AsyncGenerator[pb.ServerMessage, None]:
    """Yield what the client should get, until `incoming` ends or the gateway stops.

    Raises MirageError when the session can't be followed any more (unknown, deleted, frames gone).
    """
    session = await gateway.control.sessions.get(opening.session)
    after = await resume_after(gateway.control, session, opening)
    talk = Talk(gateway, principal, opening, session, after)
    if opening.after is not None and after < opening.after:
        await talk.say(rewound=pb.Rewound(frame=after, branch=session.branch))
    works = [
        listen(talk, incoming),
        follow(talk),
        feed_paths(talk),
        move_cameras(talk),
        talk.control.sessions.keep_alive(session.id),
        gateway.closing.wait(),
    ]
    if not principal.is_local:
        works.insert(0, confirm(talk))
    if talk.budget.is_limited:
        works.insert(0, talk.budget.follow(session, talk.control.feed, talk.control.sessions))
    tasks = [asyncio.create_task(work) for work in works]
    for task in tasks:
        task.add_done_callback(lambda _: talk.outbox.close())
    sequence = 1
    try:
        yield _numbered(answers.hello(session, talk.after), sequence)
        while (message := await talk.outbox.get()) is not None:
            sequence += 1
            yield _numbered(message, sequence)
        await end(tasks[:-1])
        for task in tasks:
            if task.done() and not task.cancelled():
                task.result()  # raises what ended it
        if gateway.closing.is_set():
            yield _numbered(_goodbye(talk), sequence + 1)
    finally:
        await end(tasks)
        talk.pictures.close()


async def confirm(talk: Talk) -> None:
    """End the stream soon after its key or share link has ended."""
    while True:
        await asyncio.sleep(CONFIRM_S)
        await talk.gateway.guard.confirm(talk.principal)


def _numbered(message: pb.ServerMessage, sequence: int) -> pb.ServerMessage:
    message.sequence = sequence
    return message


def _goodbye(talk: Talk) -> pb.ServerMessage:
    reason = "this gateway stops; come back with `after`"
    return pb.ServerMessage(
        goodbye=pb.Goodbye(after=talk.after, retry_after_s=RETURN_S, reason=reason)
    )
