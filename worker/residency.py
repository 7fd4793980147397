"""The Worlds that a worker keeps at hand, under a budget of bytes.

Torch-free. The least recently used go first: they are durable. A World belongs to the tip it was
built to: asked for with another tip it is stale and dropped. Worlds that are part of a step are
pinned and stay whatever the budget says, so the budget can be exceeded by one batch.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

W = TypeVar("W")


@dataclass
class _Resident(Generic[W]):
    world: W
    tip: str
    num_bytes: int
    pinned: bool = False


class Residency(Generic[W]):
    def __init__(self, budget_bytes: int) -> None:
        self._budget_bytes = budget_bytes
        self._residents: OrderedDict[str, _Resident[W]] = OrderedDict()  # oldest use first

    def __len__(self) -> int:
        return len(self._residents)

    @property
    def num_bytes(self) -> int:
        return sum(resident.num_bytes for resident in self._residents.values())

    def pin(self, session: str, tip: str) -> W | None:
        """The World of a session at exactly this tip, pinned; None if it has to be restored."""
        resident = self._residents.get(session)
        if resident is None or resident.tip != tip:
            self.drop(session)
            return None
        resident.pinned = True
        self._residents.move_to_end(session)
        return resident.world

    def put(self, session: str, tip: str, world: W, num_bytes: int, *, pinned: bool) -> None:
        """Keep a World as it is at `tip`, and drop others until the budget holds."""
        self._residents[session] = _Resident(world, tip, num_bytes, pinned)
        self._residents.move_to_end(session)
        self._trim()

    def unpin(self, sessions: Iterable[str]) -> None:
        for session in sessions:
            if session in self._residents:
                self._residents[session].pinned = False
        self._trim()

    def drop(self, session: str) -> None:
        """Forget a World; harmless if there is none."""
        self._residents.pop(session, None)

    def _trim(self) -> None:
        excess = self.num_bytes - self._budget_bytes
        free = [name for name, resident in self._residents.items() if not resident.pinned]
        for name in free:
            if excess <= 0:
                return
            excess -= self._residents.pop(name).num_bytes
