"""Named points of a step at which tests of survival let the process die.

`MIRAGE_FAULT=after_put:3` kills it at the third time. The loop gets this as an explicit object;
only `python -m worker` ever makes one that does something.
"""

from __future__ import annotations

import os
import signal
from typing import Literal, Protocol, get_args

from service.errors import ConfigurationError

Point = Literal["before_put", "after_put", "after_commit", "before_ack"]


class Faults(Protocol):
    def at(self, point: Point) -> None: ...


class NoFaults:
    def at(self, point: Point) -> None:
        pass


class KillAt:
    """SIGKILL to this very process, the `count`-th time that `point` is reached."""

    def __init__(self, point: Point, count: int) -> None:
        self._point, self._left = point, count

    def at(self, point: Point) -> None:
        if point == self._point:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


def parse_fault(text: str) -> Faults:
    """`point:count`, or nothing; raises ConfigurationError."""
    if not text:
        return NoFaults()
    point, _, count = text.partition(":")
    for known in get_args(Point):
        if point == known and count.isdecimal() and int(count) > 0:
            return KillAt(known, int(count))
    raise ConfigurationError(
        f"MIRAGE_FAULT={text!r}: must be <point>:<count>, a point of {', '.join(get_args(Point))}"
    )
