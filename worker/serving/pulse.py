"""Is this worker alive? `/livez` beside its metrics, for whoever restarts what hangs.

Answered by a thread of its own, so it can tell of an event loop that no longer turns and of a step
that never ends, as on a GPU that has hung: from outside, such a worker looks busy. What passes (no
Redis, no store) is no reason to restart. Trade-off: the limits are minutes, as the first step on a
GPU compiles its kernels.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

LOOP_S = 60.0
STEP_S = 600.0


class Pulse:
    """Written by the worker's loop, read by the thread that answers."""

    def __init__(self, loop_s: float = LOOP_S, step_s: float = STEP_S) -> None:
        self._loop_s, self._step_s = loop_s, step_s
        self._turned_s = time.monotonic()
        self._began_s: float | None = None  # the step under way

    def turned(self) -> None:
        self._turned_s = time.monotonic()

    @contextmanager
    def stepping(self) -> Iterator[None]:
        """A step is under way inside the block; one at a time."""
        self._began_s = time.monotonic()
        try:
            yield
        finally:
            self._began_s = None

    def problem(self) -> str:
        """Why this process should be replaced; "" if it should not."""
        now_s, began_s = time.monotonic(), self._began_s
        if now_s - self._turned_s > self._loop_s:
            return f"the event loop has not turned for {now_s - self._turned_s:.0f} s"
        if began_s is not None and now_s - began_s > self._step_s:
            return f"a step has been under way for {now_s - began_s:.0f} s"
        return ""


def with_livez(app: WSGIApplication, pulse: Pulse) -> WSGIApplication:
    """`app`, but /livez is 200, or 503 with the reason."""

    def answer(environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] != "/livez":
            return app(environ, start)
        problem = pulse.problem()
        status = "503 Service Unavailable" if problem else "200 OK"
        start(status, [("Content-Type", "text/plain; charset=utf-8")])
        return [(problem or "alive").encode(), b"\n"]

    return answer
