"""What the tasks of one stream share."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from service.auth.principal import Principal
from service.gateway import Gateway
from service.requests import Progress
from service.schemas import FlatPose
from service.sessions import Session, SessionState
from service.stream.budget import LiveBudget
from service.stream.inputs import Held
from service.stream.messages import InputMessage, OpenMessage
from service.stream.motion import Latency, Motion
from service.stream.outbox import Outbox
from service.stream.pictures import Pictures
from service.stream.planes import Planes
from service.stream.player import Player, Slices
from service.tracing import current_parent
from service.wire import world_pb2 as pb

OUTBOX_LENGTH = 8


class Talk:
    """One stream: how it was opened, where it stands, what it waits for."""

    def __init__(
        self, gateway: Gateway, principal: Principal, opening: OpenMessage, session: Session
    ) -> None:
        self.gateway, self.principal, self.opening = gateway, principal, opening
        self.control = gateway.control
        self.session_id = session.id
        self.after = session.next_frame - 1 if opening.after is None else opening.after
        self.branch = session.branch
        self.outbox = Outbox(OUTBOX_LENGTH)
        self.told: tuple[SessionState, dict[str, Any] | None] | None = None  # the client knows

        self.requests: dict[str, Progress] = {}  # of this stream, not final yet
        self.paths: dict[str, Slices] = {}  # those that are fed piece by piece
        self.path_news = asyncio.Event()

        self.player = Player(opening.frames_per_s)
        self.motion, self.latency = Motion(), Latency()
        self.budget = LiveBudget(gateway.guard, principal)
        self.pictures = Pictures(opening.format, opening.quality, opening.adaptive)
        self.planes = Planes(self.control, session.id, opening.planes)

        self.held: dict[int, tuple[Held, InputMessage]] = {}  # by camera
        self.places: dict[int, FlatPose] = {}  # where cameras that keys move are
        self.input_news = asyncio.Event()

        self.trace = current_parent()  # of the stream as a whole; costs as much as a pose to ask
        self.num_sent, self.num_skipped = 0, 0
        self.started_at_s = time.time()  # where a film begins

    async def say(self, reply_to: int = 0, **message: Any) -> None:
        """Send one of ServerMessage's kinds, as in say(pong=...)."""
        await self.outbox.put(pb.ServerMessage(reply_to=reply_to, **message))
