"""Whether a stream that broke off comes back, and when: with growing pauses, or as it was asked to,
until it has been away for too long.
"""

from __future__ import annotations

import time
from typing import Any

import websockets

from service.client.frames import Frame, ServiceError, problem_from
from service.client.retries import seconds_of

GIVE_UP_S = 30.0
PAUSES_S = (0.1, 0.3, 1.0, 2.0, 4.0)
PASSES = (429, 502, 503, 504)  # refusals that may be over soon, of the service and of proxies
LEFT, TOO_LARGE = 1000, 1009  # close codes
REFUSED = 4000  # and what is above it is an HTTP status


class Outage:
    """One, or none so far."""

    def __init__(self) -> None:
        self._since_s: float | None = None
        self._tries, self._asked_s = 0, 0.0

    def saw(self, message: Frame | dict[str, Any]) -> None:
        """A stream that gets further than `hello` is back."""
        kind = "frame" if isinstance(message, Frame) else message["type"]
        if kind == "goodbye" and isinstance(message, dict):
            self._asked_s = message["retry_after_s"]
        elif kind != "hello":
            self._since_s, self._tries, self._asked_s = None, 0, 0.0

    def pause_s(self, error: Exception) -> float | None:
        """How long to wait before the next try; None: `error` is final."""
        now_s, asked_s = time.monotonic(), self._asked_s
        if isinstance(error, ServiceError):
            if error.status not in PASSES:
                return None
            asked_s = error.problem.get("retry_after_s") or 0.0
        self._since_s = now_s if self._since_s is None else self._since_s
        pause_s = max(asked_s, PAUSES_S[min(self._tries, len(PAUSES_S) - 1)])
        self._tries += 1
        return pause_s if now_s + pause_s - self._since_s < GIVE_UP_S else None


def has_left(error: Exception) -> bool:
    """Whether the stream was closed because all was said."""
    return isinstance(error, websockets.ConnectionClosed) and _code(error) == LEFT


def refused_by(closed: websockets.ConnectionClosed) -> Exception:
    """What a close code without an `error` before it says."""
    code = _code(closed)
    if code < REFUSED and code != TOO_LARGE:
        return closed
    status = 413 if code == TOO_LARGE else code - REFUSED
    reason = "" if closed.rcvd is None else closed.rcvd.reason
    return ServiceError({"status": status, "detail": reason or f"closed with code {code}"})


def refused_handshake(refused: websockets.InvalidStatus) -> ServiceError:
    """What a proxy answered instead of opening a stream."""
    response = refused.response
    problem = problem_from(response.body.decode(errors="replace"), response.status_code)
    asked = {"retry_after_s": seconds_of(response.headers.get("Retry-After", ""))}
    return ServiceError(asked | problem)


def _code(closed: websockets.ConnectionClosed) -> int:
    return 1006 if closed.rcvd is None else closed.rcvd.code
