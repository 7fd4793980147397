"""Every error a client can meet, as one tree, and one table to status, close code and problem type.

    MirageError
    ├── ConfigurationError       a setting is unknown or malformed; the process does not start
    ├── InvalidRequest           what was sent can't be used; `fields` say why
    │   └── InvalidUpload        not an image, truncated, too large, wrong depth
    ├── Unauthenticated          no key, or one that is unknown, revoked or expired
    ├── Forbidden                a key that may not do this, or a page that may not ask
    ├── NotFound
    │   ├── UnknownSession
    │   ├── UnknownRequest
    │   └── UnknownFrame         a frame that was never made (yet)
    ├── SessionDeleted           it existed, and was deleted or expired
    ├── FramesGone               no longer kept; `first_available` names the first that is
    ├── Conflict                 the session changed meanwhile, or its state does not allow this
    ├── TooManyRequests          a cap of this session or key; `retry_after_s`
    ├── Unavailable              the service can't accept this now; `retry_after_s`
    │   ├── ControlPlaneDown     Redis does not answer
    │   └── StoreDown            the segment store does not answer
    ├── SegmentError
    │   ├── SegmentMissing
    │   └── SegmentCorrupt       checksum or format differ
    ├── LeaseLost                another worker owns the session now (never leaves a worker)
    └── GenerationFailed         the model could not do this request

Raised anywhere, translated once at the edge by `problem_of`; anything else that is raised is a
defect (500).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class FieldProblem:
    """One field that can't be used."""

    field: str
    seen: str
    allowed: str


class MirageError(Exception):
    """The root; `detail` tells the client what was wrong, the value seen and what to do."""

    def __init__(
        self,
        detail: str,
        *,
        fields: tuple[FieldProblem, ...] = (),
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.fields = fields
        self.retry_after_s = retry_after_s


class ConfigurationError(MirageError):
    pass


class InvalidRequest(MirageError):
    pass


class InvalidUpload(InvalidRequest):
    pass


class Unauthenticated(MirageError):
    pass


class Forbidden(MirageError):
    pass


class NotFound(MirageError):
    pass


class UnknownSession(NotFound):
    pass


class UnknownRequest(NotFound):
    pass


class UnknownFrame(NotFound):
    pass


class SessionDeleted(MirageError):
    pass


class FramesGone(MirageError):
    def __init__(self, detail: str, first_available: int) -> None:
        super().__init__(detail)
        self.first_available = first_available


class Conflict(MirageError):
    pass


class TooManyRequests(MirageError):
    pass


class Unavailable(MirageError):
    pass


class ControlPlaneDown(Unavailable):
    pass


class StoreDown(Unavailable):
    pass


class SegmentError(MirageError):
    pass


class SegmentMissing(SegmentError):
    pass


class SegmentCorrupt(SegmentError):
    pass


class LeaseLost(MirageError):
    pass


class GenerationFailed(MirageError):
    pass


@dataclass(frozen=True)
class Problem:
    """How one kind of error looks from outside."""

    status: int  # HTTP
    close_code: int  # WebSocket: 1000-1015 as RFC 6455, 4000 + HTTP status for the rest
    type: str  # stable slug, the last part of the problem's type URI
    title: str


PROBLEMS: dict[type[MirageError], Problem] = {
    ConfigurationError: Problem(500, 1011, "configuration", "The server is misconfigured"),
    InvalidRequest: Problem(422, 4422, "invalid-request", "The request can't be used"),
    InvalidUpload: Problem(422, 4422, "invalid-upload", "The upload can't be used"),
    Unauthenticated: Problem(401, 4401, "unauthenticated", "A valid key is needed"),
    Forbidden: Problem(403, 4403, "forbidden", "This is not allowed"),
    NotFound: Problem(404, 4404, "not-found", "There is no such thing"),
    UnknownSession: Problem(404, 4404, "unknown-session", "There is no such session"),
    UnknownRequest: Problem(404, 4404, "unknown-request", "There is no such request"),
    UnknownFrame: Problem(404, 4404, "unknown-frame", "There is no such frame"),
    SessionDeleted: Problem(410, 4410, "session-deleted", "The session was deleted"),
    FramesGone: Problem(410, 4410, "frames-gone", "These frames are no longer kept"),
    Conflict: Problem(409, 4409, "conflict", "The session's state does not allow this"),
    TooManyRequests: Problem(429, 4429, "too-many-requests", "Too many requests"),
    Unavailable: Problem(503, 1013, "unavailable", "The service can't accept this now"),
    ControlPlaneDown: Problem(503, 1013, "control-plane-down", "The control plane does not answer"),
    StoreDown: Problem(503, 1013, "store-down", "The segment store does not answer"),
    SegmentError: Problem(500, 1011, "segment", "A stored segment can't be used"),
    SegmentMissing: Problem(500, 1011, "segment-missing", "A stored segment is missing"),
    SegmentCorrupt: Problem(500, 1011, "segment-corrupt", "A stored segment is corrupt"),
    LeaseLost: Problem(500, 1011, "lease-lost", "The session moved to another worker"),
    GenerationFailed: Problem(500, 1011, "generation-failed", "The model could not do this"),
}


def problem_of(error: MirageError) -> Problem:
    """The row of the table for this error: its own class or the nearest ancestor that has one."""
    for kind in type(error).__mro__:
        if kind in PROBLEMS:
            return PROBLEMS[kind]
    return Problem(500, 1011, "internal", "Something failed")


def problem_document(error: MirageError) -> dict[str, Any]:
    """The body of an application/problem+json answer (RFC 9457), without request_id."""
    problem = problem_of(error)
    document: dict[str, Any] = {
        "type": f"urn:mirage:problem:{problem.type}",
        "title": problem.title,
        "status": problem.status,
        "detail": error.detail,
    }
    if error.fields:
        document["errors"] = [vars(field) for field in error.fields]
    if error.retry_after_s is not None:
        document["retry_after_s"] = error.retry_after_s
    if isinstance(error, FramesGone):
        document["first_available"] = error.first_available
    return document
