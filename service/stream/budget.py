"""Who moves a camera pays for its live frames: some are bought ahead from the key's frames per day.

Frames, not poses: what a newer pose replaced costs nothing. Who only watches pays nothing. A frame
counts once it was made, whether this stream shows it, skips it, or holds it back while it is paused
or its client does not read: other streams may show it. Once the day is used up a pose is refused
and the stream goes on. Trade-off: what was bought and not made when the stream ends is lost, and a
pose that is sent while the last frame of its camera is made may be made, too.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from service.auth.guard import Guard
from service.auth.principal import Principal
from service.control.feed import Feed
from service.control.frames import Frame
from service.control.sessions import Session, Sessions
from service.errors import TooManyRequests

BOUGHT_AT_ONCE = 16
WAIT_S = 0.5  # how soon a rewind is noticed that nobody walks after
FRAMES_AT_ONCE = 32


class LiveBudget:
    def __init__(self, guard: Guard, principal: Principal, session: Session) -> None:
        self._guard, self._principal = guard, principal
        self.is_limited = principal.quota.frames_per_day is not None
        self._left = 0
        self._cameras: set[int] = set()  # that have a pose under way
        self._ours, self._count = f"r_{os.urandom(6).hex()}", 0
        self._counted = (session.branch, session.next_frame - 1)

    def new_request_id(self) -> str:
        """One by which the stream's own frames are known, however many poses it sends."""
        self._count += 1
        return f"{self._ours}{self._count:08x}"

    async def claim(self, camera: int) -> None:
        """Before a live pose is asked for; raises TooManyRequests."""
        if not self.is_limited:
            return
        while self._left < len(self._cameras | {camera}):
            await self._buy()
        self._cameras.add(camera)

    def _made(self, frames: Iterable[Frame]) -> None:
        """Frames in order, none left out; those that were told before do not count again."""
        for frame in frames:
            place = (frame.branch, frame.frame)
            if place > self._counted:
                self._counted = place
                if frame.request_id.startswith(self._ours):
                    self._left -= 1
                    self._cameras.discard(frame.camera)

    async def follow(self, session: Session, feed: Feed, sessions: Sessions) -> None:
        """Count what is made, whether or not the stream keeps up with it."""
        branch, after = self._counted
        async with feed.watch(session.id) as watch:
            while True:
                frames = await watch.read(after, wait_s=WAIT_S, limit=FRAMES_AT_ONCE)
                self._made(frames)
                if frames:
                    after = frames[-1].frame
                    continue
                now = await sessions.get(session.id)
                if now.branch != branch:  # rewound
                    branch, after = now.branch, min(after, now.branch_first_frame - 1)

    async def _buy(self) -> None:
        try:
            await self._guard.spend_frames(self._principal, BOUGHT_AT_ONCE)
            self._left += BOUGHT_AT_ONCE
        except TooManyRequests:  # not so many are left, but one may be
            await self._guard.spend_frames(self._principal, 1)
            self._left += 1
