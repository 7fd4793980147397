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
    │   ├── UnknownSnapshot
    │   └── UnknownFrame         a frame that was never made (yet)
    ├── SessionDeleted           it existed, and was deleted or expired
    ├── FramesGone               no longer kept; `first_available` names the first that is
    ├── Conflict                 the session changed meanwhile, or its state does not allow this
    │   ├── VersionConflict      it is no longer at the version that the client named
    │   └── NotSetUp             a setting of this server does not allow this
    ├── TooManyRequests          a cap of this session or key; `retry_after_s` where waiting helps
    │   └── OverQuota            more at once than the key may ever use: waiting does not help
    ├── Unavailable              the service can't accept this now; `retry_after_s`
    │   ├── ControlPlaneDown     Redis does not answer
    │   └── StoreDown            the segment store does not answer
    ├── SegmentError
    │   ├── SegmentMissing
    │   └── SegmentCorrupt       checksum or format differ
    ├── AmbiguousWorld           rebuilt, and where it ends is not certain: an operator decides
    ├── LeaseLost                another worker owns the session now (never leaves a worker)
    └── GenerationFailed         the model could not do this request

Raised anywhere, translated once at the edge by `problem_of`; anything else that is raised is a
defect (500).
"""

from __future__ import annotations

import re
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
        limit: str = "",
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.fields = fields
        self.retry_after_s = retry_after_s
        self.limit = limit  # the name of one that was reached, for the metric


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


class UnknownSnapshot(NotFound):
    pass


class UnknownFrame(NotFound):
    pass


class SessionDeleted(MirageError):
    pass


class FramesGone(MirageError):
    def __init__(self, detail: str, first_available: int) -> None:
        super().__init__(detail, limit="frames_kept")
        self.first_available = first_available


class Conflict(MirageError):
    pass


class VersionConflict(Conflict):
    pass


class NotSetUp(Conflict):
    pass


class TooManyRequests(MirageError):
    def __init__(
        self,
        detail: str,
        *,
        fields: tuple[FieldProblem, ...] = (),
        retry_after_s: float | None = None,
        limit: str = "rate",
    ) -> None:
        super().__init__(detail, fields=fields, retry_after_s=retry_after_s, limit=limit)


class OverQuota(TooManyRequests):
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


class AmbiguousWorld(MirageError):
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
    grpc: str  # name of the status code
    type: str  # stable slug, the last part of the problem's type URI; its anchor in docs/errors.md
    title: str
    hint: str  # what to do about it

    def document(self, detail: str) -> dict[str, Any]:
        """The fields that every problem has."""
        return {
            "type": f"urn:mirage:problem:{self.type}",
            "title": self.title,
            "status": self.status,
            "detail": detail,
            "hint": self.hint,
            "documentation": f"/errors#{self.type}",
        }


# fmt: off
PROBLEMS: dict[type[MirageError], Problem] = {
    ConfigurationError: Problem(
        500, 1011, "INTERNAL", "configuration",
        "The server is misconfigured",
        "An operator has to correct the setting that the message names.",
    ),
    InvalidRequest: Problem(
        422, 4422, "INVALID_ARGUMENT", "invalid-request",
        "The request can't be used",
        "Correct the fields under `errors`: each says what was seen and what is allowed.",
    ),
    InvalidUpload: Problem(
        422, 4422, "INVALID_ARGUMENT", "invalid-upload",
        "The upload can't be used",
        "Send a PNG, JPEG or WebP, depth as 16-bit PNG (mm) or float32 NPY (m), "
        "and to import a world the file that an export gave.",
    ),
    Unauthenticated: Problem(
        401, 4401, "UNAUTHENTICATED", "unauthenticated",
        "A valid key is needed",
        "Send `Authorization: Bearer KEY`; `mirage keys create` makes a key.",
    ),
    Forbidden: Problem(
        403, 4403, "PERMISSION_DENIED", "forbidden",
        "This is not allowed",
        "The message says what is missing: a key with another scope, or a page, an address or a "
        "world that may be used.",
    ),
    NotFound: Problem(
        404, 4404, "NOT_FOUND", "not-found",
        "There is no such thing",
        "Check the address.",
    ),
    UnknownSession: Problem(
        404, 4404, "NOT_FOUND", "unknown-session",
        "There is no such session",
        "Check the id, or open a session; ids are listed at /v1/sessions.",
    ),
    UnknownRequest: Problem(
        404, 4404, "NOT_FOUND", "unknown-request",
        "There is no such request",
        "Check the id; a session keeps its last 256 requests.",
    ),
    UnknownSnapshot: Problem(
        404, 4404, "NOT_FOUND", "unknown-snapshot",
        "There is no such snapshot",
        "Names are listed at /v1/sessions/{id}/snapshots.",
    ),
    UnknownFrame: Problem(
        404, 4404, "NOT_FOUND", "unknown-frame",
        "There is no such frame",
        "Wait for it: /v1/sessions/{id}/frames says which frames exist.",
    ),
    SessionDeleted: Problem(
        410, 4410, "NOT_FOUND", "session-deleted",
        "The session was deleted",
        "Open another session. To keep one alive, use it or call :keep-alive.",
    ),
    FramesGone: Problem(
        410, 4410, "OUT_OF_RANGE", "frames-gone",
        "These frames are no longer kept",
        "Go on with the frame that `first_available` names.",
    ),
    Conflict: Problem(
        409, 4409, "FAILED_PRECONDITION", "conflict",
        "The session's state does not allow this",
        "Read the session again, then decide whether to repeat the request.",
    ),
    VersionConflict: Problem(
        412, 4412, "ABORTED", "version-conflict",
        "The session has changed meanwhile",
        "Read the session again, and repeat the request with its new ETag.",
    ),
    NotSetUp: Problem(
        409, 4409, "FAILED_PRECONDITION", "not-set-up",
        "This server is not set up for this",
        "Do without it, or ask an operator to change the setting that the message names.",
    ),
    TooManyRequests: Problem(
        429, 4429, "RESOURCE_EXHAUSTED", "too-many-requests",
        "Too many requests",
        "Wait `retry_after_s` and send the request again; without one, make room as the message "
        "says.",
    ),
    OverQuota: Problem(
        422, 4422, "INVALID_ARGUMENT", "over-quota",
        "More at once than this key may use",
        "Ask for no more at once than `errors` allow, or use another key.",
    ),
    Unavailable: Problem(
        503, 1013, "UNAVAILABLE", "unavailable",
        "The service can't accept this now",
        "Wait `retry_after_s`, then send the request again.",
    ),
    ControlPlaneDown: Problem(
        503, 1013, "UNAVAILABLE", "control-plane-down",
        "The control plane does not answer",
        "Wait `retry_after_s` and try again; an operator should look at Redis.",
    ),
    StoreDown: Problem(
        503, 1013, "UNAVAILABLE", "store-down",
        "The segment store does not answer",
        "Wait `retry_after_s` and try again; an operator should look at the store.",
    ),
    SegmentError: Problem(
        500, 1011, "DATA_LOSS", "segment",
        "A stored segment can't be used",
        "An operator should look at the segment store.",
    ),
    SegmentMissing: Problem(
        500, 1011, "DATA_LOSS", "segment-missing",
        "A stored segment is missing",
        "The world can't be restored; open another. See the segment store's log.",
    ),
    SegmentCorrupt: Problem(
        500, 1011, "DATA_LOSS", "segment-corrupt",
        "A stored segment is corrupt",
        "The world can't be restored; open another. See the segment store's log.",
    ),
    AmbiguousWorld: Problem(
        409, 4409, "DATA_LOSS", "ambiguous-world",
        "It is not certain where this world ends",
        "An operator mends it with `mirage fsck --repair`, or chooses one of the segments with "
        "`mirage fsck --choose`.",
    ),
    LeaseLost: Problem(
        500, 1011, "ABORTED", "lease-lost",
        "The session moved to another worker",
        "Nothing to do: the other worker goes on.",
    ),
    GenerationFailed: Problem(
        500, 1011, "INTERNAL", "generation-failed",
        "The model could not do this",
        "Try poses nearer to what was seen, unless another cause is named; frames before it stay.",
    ),
}
# what the router and the limits of a body refuse, before there is an endpoint to raise anything
OF_HTTP = (
    Problem(
        400, 4400, "INVALID_ARGUMENT", "bad-request",
        "The body can't be read",
        "Check its form: JSON that is whole, or a form as curl's `-F` makes it.",
    ),
    Problem(
        405, 4405, "UNIMPLEMENTED", "method-not-allowed",
        "This method is not allowed here",
        "Use one that the header `Allow` names.",
    ),
    Problem(
        413, 4413, "RESOURCE_EXHAUSTED", "too-large",
        "The body is too large",
        "Send a smaller picture or a shorter path; operators set limits with MIRAGE_MAX_*.",
    ),
    Problem(
        416, 4416, "OUT_OF_RANGE", "range-not-satisfiable",
        "There are no such bytes",
        "Ask for a range within the size that the header `Content-Range` names.",
    ),
)
INTERNAL = Problem(
    500, 1011, "INTERNAL", "internal", "Something failed", "Report it with its request id."
)
# fmt: on
DEFECT = "This is a defect of the server; its log has the details under the request id."

BY_STATUS = {row.status: row for row in (*OF_HTTP, PROBLEMS[NotFound])}
BY_TYPE = {row.type: row for row in (*PROBLEMS.values(), *OF_HTTP, INTERNAL)}


def cancelled(kind: str) -> Conflict:
    """Of a fork, rewind or snapshot whose result somebody waits for."""
    return Conflict(f"The {kind} was cancelled before it was done; send it again if need be.")


def problem_of(error: MirageError) -> Problem:
    """The row of the table for this error: its own class or the nearest ancestor that has one."""
    for kind in type(error).__mro__:
        if kind in PROBLEMS:
            return PROBLEMS[kind]
    return INTERNAL


def problem_document(error: MirageError) -> dict[str, Any]:
    """The body of an application/problem+json answer (RFC 9457), without request_id."""
    document = problem_of(error).document(_detail(error))
    if error.fields:
        document["errors"] = [vars(field) for field in error.fields]
    if error.retry_after_s is not None:
        document["retry_after_s"] = error.retry_after_s
    if isinstance(error, FramesGone):
        document["first_available"] = error.first_available
    return document


def _detail(error: MirageError) -> str:
    """With what the first field allows: gRPC's `details()` shows nothing else of the document."""
    first = next(iter(error.fields), None)
    if first is None or first.allowed in error.detail:
        return error.detail
    got = "" if is_told(first.seen, error.detail) else f"; got {first.seen}"
    return f"{error.detail} {first.field}: {first.allowed}{got}."


def is_told(seen: str, detail: str) -> bool:
    """Whether a text says it already, and not as a part of other words and numbers."""
    return not seen or re.search(rf"(?<!\w){re.escape(seen)}(?!\w)", detail) is not None


def error_of(document: dict[str, Any]) -> MirageError:
    """The inverse of `problem_document`, for a problem that was kept: a failed request's."""
    slug = str(document["type"]).rpartition(":")[2]
    kind = next((kind for kind, row in PROBLEMS.items() if row.type == slug), GenerationFailed)
    error = MirageError.__new__(kind)
    MirageError.__init__(error, document["detail"], retry_after_s=document.get("retry_after_s"))
    if isinstance(error, FramesGone):
        error.first_available = document["first_available"]
    return error


def close_of(error: MirageError) -> tuple[int, str]:
    """The code and the reason that a WebSocket is closed with: a reason has 123 bytes at most."""
    return problem_of(error).close_code, error.detail.encode()[:120].decode(errors="ignore")
