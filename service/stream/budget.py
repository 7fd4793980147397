"""Who moves a camera pays for its live frames: some are bought ahead from the key's frames per day.

Frames, not poses: what a newer pose replaced costs nothing. Who only watches pays nothing. Once the
day is used up a pose is refused and the stream goes on. Trade-off: what was bought and not shown
when the stream ends is lost, and poses under way when the last is used are still shown.
"""

from __future__ import annotations

from service.auth.guard import Guard
from service.auth.principal import Principal
from service.errors import TooManyRequests

BOUGHT_AT_ONCE = 16


class LiveBudget:
    def __init__(self, guard: Guard, principal: Principal) -> None:
        self._guard, self._principal = guard, principal
        self._is_limited = principal.quota.frames_per_day is not None
        self._left = 0

    async def claim(self) -> None:
        """Before a live pose is asked for; raises TooManyRequests."""
        if not self._is_limited or self._left > 0:
            return
        try:
            await self._guard.spend_frames(self._principal, BOUGHT_AT_ONCE)
            self._left = BOUGHT_AT_ONCE
        except TooManyRequests:  # not so many are left, but one may be
            await self._guard.spend_frames(self._principal, 1)
            self._left = 1

    def shown(self) -> None:
        """One of these frames was made."""
        self._left -= 1
