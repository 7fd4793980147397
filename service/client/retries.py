"""When a call is tried again: the connection failed, or the service said to come back.

A POST carries an Idempotency-Key that stays the same, so what was done already is answered, not
done again. A DELETE whose first answer was lost may find its session gone: that is success.
"""

from __future__ import annotations

import os
import uuid
from typing import Any

import httpx

from service.client.frames import ServiceError

TRIES = 5
FIRST_S, LONGEST_S = 0.3, 8.0
COME_BACK = (429, 503)
GONE = (404, 410)
KEY_VARIABLE = "MIRAGE_API_KEY"


def credentials(key: str | None) -> dict[str, str]:
    """The header of an API key; without one, that of MIRAGE_API_KEY, if it is set."""
    key = key or os.environ.get(KEY_VARIABLE)
    return {"Authorization": f"Bearer {key}"} if key else {}


class Attempts:
    """One call."""

    def __init__(self, method: str) -> None:
        self._method, self._count, self._was_lost = method, 0, False
        self.headers = {"Idempotency-Key": uuid.uuid4().hex} if method == "POST" else {}

    def pause_s(self, outcome: httpx.Response | httpx.TransportError) -> float | None:
        """How long to wait before the next attempt; None = this outcome is final."""
        self._count += 1
        if self._count >= TRIES:
            return None
        backoff_s: float = min(FIRST_S * 2.0 ** (self._count - 1), LONGEST_S)
        if isinstance(outcome, httpx.TransportError):
            self._was_lost = True
            return backoff_s
        if outcome.status_code not in COME_BACK:
            return None
        asked_s = float(outcome.headers.get("retry-after", 0))
        return min(max(asked_s, backoff_s), LONGEST_S)

    def result(self, outcome: httpx.Response | httpx.TransportError) -> httpx.Response:
        """The answer; raises ServiceError, TransportError."""
        if isinstance(outcome, httpx.TransportError):
            raise outcome
        lost_delete = self._method == "DELETE" and self._was_lost
        if outcome.is_error and not (lost_delete and outcome.status_code in GONE):
            raise ServiceError(problem_of(outcome))
        return outcome


def problem_of(answer: httpx.Response) -> dict[str, Any]:
    if "json" not in answer.headers.get("content-type", ""):
        return {"status": answer.status_code, "detail": f"HTTP {answer.status_code}"}
    problem: dict[str, Any] = answer.json()
    return problem
