"""When a call is tried again: the connection failed, or the service said to come back.

A POST carries an Idempotency-Key that stays the same, so what was done already is answered, not
done again; while the service still does what was asked before the connection broke, or before it
lost its Redis, it is asked again. A DELETE whose first answer was lost may find its session gone:
that is success.
"""

from __future__ import annotations

import os
import time
import uuid
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from service.client.frames import ServiceError, problem_from

TRIES = 5
FIRST_S, LONGEST_S = 0.3, 8.0
UNAVAILABLE = 503
COME_BACK = (429, UNAVAILABLE)
STILL_RUNS, RUNS_S = 409, 60.0  # with Retry-After: what a lost call asked for; it may take so long
GONE = (404, 410)
KEY_VARIABLE = "MIRAGE_API_KEY"


def credentials(key: str | None) -> dict[str, str]:
    """The header of an API key; without one, that of MIRAGE_API_KEY, if it is set."""
    key = key or os.environ.get(KEY_VARIABLE)
    return {"Authorization": f"Bearer {key}"} if key else {}


class Attempts:
    """One call."""

    def __init__(self, method: str) -> None:
        self._method, self._count = method, 0
        self._lost_s: float | None = None  # since when it may be under way
        self.headers = {"Idempotency-Key": uuid.uuid4().hex} if method == "POST" else {}

    def pause_s(self, outcome: httpx.Response | httpx.TransportError) -> float | None:
        """How long to wait before the next attempt; None = this outcome is final."""
        still_runs = self._still_runs(outcome)
        self._count += not still_runs
        if self._count >= TRIES:
            return None
        backoff_s: float = min(FIRST_S * 2.0 ** (self._count - 1), LONGEST_S)
        if isinstance(outcome, httpx.TransportError):
            self._lost_s = self._lost_s or time.monotonic()
            return backoff_s
        if outcome.status_code == UNAVAILABLE:
            self._lost_s = self._lost_s or time.monotonic()
        if outcome.status_code not in COME_BACK and not still_runs:
            return None
        return min(max(seconds_of(outcome.headers.get("retry-after", "")), backoff_s), LONGEST_S)

    def _still_runs(self, outcome: httpx.Response | httpx.TransportError) -> bool:
        if isinstance(outcome, httpx.TransportError) or self._lost_s is None:
            return False
        is_told = outcome.status_code == STILL_RUNS and "retry-after" in outcome.headers
        return is_told and time.monotonic() - self._lost_s < RUNS_S

    def result(self, outcome: httpx.Response | httpx.TransportError) -> httpx.Response:
        """The answer; raises ServiceError, TransportError."""
        if isinstance(outcome, httpx.TransportError):
            raise outcome
        lost_delete = self._method == "DELETE" and self._lost_s is not None
        if outcome.is_error and not (lost_delete and outcome.status_code in GONE):
            raise ServiceError(problem_of(outcome))
        return outcome


def seconds_of(retry_after: str) -> float:
    """What the header asks to wait, as seconds or as a date (of proxies); 0 if it can't be read."""
    try:
        return float(int(retry_after))
    except ValueError:
        pass
    try:
        return parsedate_to_datetime(retry_after).timestamp() - time.time()
    except ValueError:
        return 0.0


def problem_of(answer: httpx.Response) -> dict[str, Any]:
    return problem_from(answer.text, answer.status_code)
