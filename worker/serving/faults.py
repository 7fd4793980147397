"""Named points of a step at which tests of survival let the process die or stop.

`MIRAGE_FAULT=after_put:3` kills it at the third time, `after_put:3:stop` stops it as SIGSTOP does.
The loop gets this as an explicit object; only `python -m worker` and `bench.noop` make one that
does something.
"""

from __future__ import annotations

import os
import signal
from typing import Literal, Protocol, get_args

from service.errors import ConfigurationError

Point = Literal["before_put", "after_put", "after_commit", "before_ack"]
SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


class Faults(Protocol):
    def at(self, point: Point) -> None: ...


class NoFaults:
    def at(self, point: Point) -> None:
        pass


class SignalAt:
    """A signal to this very process, the `count`-th time that `point` is reached."""

    def __init__(self, point: Point, count: int, number: signal.Signals) -> None:
        self._point, self._left, self._number = point, count, number

    def at(self, point: Point) -> None:
        if point == self._point:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), self._number)


def parse_fault(text: str) -> Faults:
    """`point:count`, `point:count:stop` or nothing; raises ConfigurationError."""
    if not text:
        return NoFaults()
    point, count, how = (*text.split(":"), "kill", "", "")[:3]
    for known in get_args(Point):
        if point == known and count.isdecimal() and int(count) > 0 and how in SIGNALS:
            return SignalAt(known, int(count), SIGNALS[how])
    raise ConfigurationError(
        f"MIRAGE_FAULT={text!r}: must be <point>:<count> or <point>:<count>:stop, "
        f"a point of {', '.join(get_args(Point))}"
    )
