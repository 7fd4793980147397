"""What the tasks of one stream share."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Any

from service.auth.principal import Principal
from service.control.requests import Progress, RequestState
from service.control.sessions import Session, SessionState
from service.errors import UnknownRequest
from service.gateway import Gateway
from service.schemas import FlatPose
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
        self,
        gateway: Gateway,
        principal: Principal,
        opening: OpenMessage,
        session: Session,
        after: int,  # the last frame that the client has
    ) -> None:
        self.gateway, self.principal, self.opening = gateway, principal, opening
        self.by_guest = bool(principal.share)
        self.control = gateway.control
        self.session_id = session.id
        self.after, self.branch = after, session.branch
        self.sought = (0, 0)  # the branch that this stream's last seek began, and its number
        self.outbox = Outbox(OUTBOX_LENGTH)
        self.told: tuple[SessionState, dict[str, Any] | None] | None = None  # the client knows

        self.requests: dict[str, Progress] = {}  # of this stream, not final yet
        self.paths: dict[str, Slices] = {}  # those that are fed piece by piece
        self.path_news = asyncio.Event()

        self.player = Player(opening.frames_per_s)
        self.motion, self.latency = Motion(), Latency()
        self.budget = LiveBudget(gateway.guard, principal, session)
        self.pictures = Pictures(opening.format, opening.quality, opening.adaptive)
        self.planes = Planes(self.control, session.id, opening.planes)

        self.held: dict[int, tuple[Held, InputMessage]] = {}  # by camera
        self.places: dict[int, FlatPose] = {}  # where cameras that keys move are
        self.input_news = asyncio.Event()
        self.steering = asyncio.Lock()  # keys move no camera while something else does

        self.trace = current_parent()  # of the stream as a whole; costs as much as a pose to ask
        self.num_sent, self.num_skipped = 0, 0
        self.started_at_s = time.time()  # where a film begins

    def is_over(self, path: Slices) -> bool:
        """Nothing more is made of it."""
        return path.is_over and not any(piece in self.requests for piece in path.pieces)

    async def cancel_path(self, path: Slices) -> None:
        """Give the worker no more of it; what it has is cancelled."""
        path.ended = path.ended or RequestState.CANCELLED
        for piece in path.pieces:
            await self._cancel(piece)

    async def cancel_paths(self) -> None:
        """Whatever was asked for and did not arrive."""
        for path in list(self.paths.values()):  # others may come and go meanwhile
            await self.cancel_path(path)
        for request in list(self.requests.values()):
            if request.kind == "generate":
                await self._cancel(request.id)
        self.path_news.set()

    async def _cancel(self, request_id: str) -> None:
        if request_id in self.requests:
            with suppress(UnknownRequest):  # its record made room for others
                await self.control.requests.cancel(self.session_id, request_id)

    async def say(self, reply_to: int = 0, **message: Any) -> None:
        """Send one of ServerMessage's kinds, as in say(pong=...)."""
        await self.outbox.put(pb.ServerMessage(reply_to=reply_to, **message))
