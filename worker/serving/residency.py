"""The Worlds that a worker keeps at hand, under a budget of bytes.

Torch-free. The least recently used go first: they are durable. Room for a World is reserved before
it is restored, so that what can't fit is refused before it hurts; only growth during a step exceeds
the budget, by what one step adds. A World is pinned while it waits for its step, is part of one, or
has a chunk that is not committed yet; pinned Worlds stay.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Generic, TypeVar

W = TypeVar("W")


@dataclass(eq=False)
class Resident(Generic[W]):
    """A World at hand."""

    world: W
    tip: str  # of the manifest as committed; the World itself may be one chunk ahead of it
    num_bytes: int  # really allocated; changed by `resize`
    num_points: int = 0  # of its memory
    pins: int = 0


class Residency(Generic[W]):
    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.num_evicted = 0
        self.num_bytes = 0  # of the Worlds held, without what is reserved: a running total
        self._residents: OrderedDict[str, Resident[W]] = OrderedDict()  # oldest use first
        self._reserved: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._residents)

    @property
    def num_points(self) -> int:
        return sum(resident.num_points for resident in self._residents.values())

    @property
    def pinned_bytes(self) -> int:
        """Bytes that can't be freed now, reservations included."""
        pinned = (one.num_bytes for one in self._residents.values() if one.pins)
        return sum(pinned) + sum(self._reserved.values())

    def find(self, session: str, tip: str | None = None) -> Resident[W] | None:
        """The World of a session; one of another tip is stale and dropped (None: any tip)."""
        resident = self._residents.get(session)
        if resident is None:
            return None
        if tip is not None and resident.tip != tip:
            self.drop(session)
            return None
        self._residents.move_to_end(session)
        return resident

    def can_reserve(self, num_bytes: int) -> bool:
        return self.pinned_bytes + num_bytes <= self.budget_bytes

    def reserve(self, session: str, num_bytes: int) -> None:
        """Make room for a World that is about to be restored; ask `can_reserve` first."""
        assert self.can_reserve(num_bytes)
        self._reserved[session] = num_bytes
        self._trim()

    def release(self, session: str) -> None:
        """Give up a reservation, if there is one."""
        self._reserved.pop(session, None)

    def put(self, session: str, tip: str, world: W, num_bytes: int) -> Resident[W]:
        """Keep a World, pinned once, in place of its reservation."""
        self.release(session)
        self.drop(session)
        resident = self._residents[session] = Resident(world, tip, num_bytes, pins=1)
        self.num_bytes += num_bytes
        self._trim()
        return resident

    def resize(self, session: str, resident: Resident[W], num_bytes: int, num_points: int) -> None:
        """A World has grown; also one that was dropped meanwhile."""
        if self.holds(session, resident):
            self.num_bytes += num_bytes - resident.num_bytes
        resident.num_bytes, resident.num_points = num_bytes, num_points

    def pin(self, resident: Resident[W]) -> None:
        resident.pins += 1

    def unpin(self, resident: Resident[W]) -> None:
        assert resident.pins > 0
        resident.pins -= 1
        self._trim()

    def drop(self, session: str) -> None:
        """Forget a World; harmless if there is none."""
        resident = self._residents.pop(session, None)
        if resident is not None:
            self.num_bytes -= resident.num_bytes

    def discard(self, session: str, resident: Resident[W]) -> None:
        """Forget this very World, which may have been dropped or replaced before."""
        if self.holds(session, resident):
            self.drop(session)

    def holds(self, session: str, resident: Resident[W]) -> bool:
        return self._residents.get(session) is resident

    def shed(self) -> int:
        """Drop every World that is not pinned, as memory ran out; how many bytes that were."""
        free = [name for name, one in self._residents.items() if not one.pins]
        return sum(self._evict(session) for session in free)

    def _trim(self) -> None:
        excess = self.num_bytes + sum(self._reserved.values()) - self.budget_bytes
        if excess <= 0:
            return
        for session in [name for name, one in self._residents.items() if not one.pins]:
            excess -= self._evict(session)
            if excess <= 0:
                return

    def _evict(self, session: str) -> int:
        before = self.num_bytes
        self.num_evicted += 1
        self.drop(session)
        return before - self.num_bytes
