"""Every error as a problem document (RFC 9457): ours, the validator's, the router's and the
unforeseen.

`seen` repeats the refused value, cut short, so that a client sees what arrived rather than what it
believes it sent.
"""

from __future__ import annotations

import http
import math
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from redis.exceptions import RedisError
from starlette.exceptions import HTTPException

from service.errors import (
    ControlPlaneDown,
    FieldProblem,
    InvalidRequest,
    MirageError,
    Unauthenticated,
    problem_document,
)
from service.limits import MAX_SEEN_CHARS
from service.schemas import ProblemOut

MEDIA_TYPE = "application/problem+json"
LOCATIONS = ("body", "query", "path", "header", "form")
RESPONSES: dict[int | str, dict[str, Any]] = {
    "default": {"description": "A problem (RFC 9457)", "model": ProblemOut},
}


def add_handlers(app: FastAPI) -> None:
    """Let every error of `app` leave as a problem document."""
    app.add_exception_handler(MirageError, _ours)
    app.add_exception_handler(RedisError, _redis)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unforeseen)


def invalid_request(error: ValidationError | RequestValidationError) -> InvalidRequest:
    """A validator's findings in our words: each field with what was seen and what is allowed."""
    fields = tuple(_field(item) for item in error.errors())
    names = ", ".join(dict.fromkeys(field.field for field in fields))
    return InvalidRequest(f"These fields can't be used: {names}.", fields=fields)


def control_plane_down(error: Exception) -> ControlPlaneDown:
    """What the client is told when Redis fails in the middle of a request."""
    return ControlPlaneDown(f"Redis does not answer: {error}", retry_after_s=1.0)


def answer(
    request: Request, document: dict[str, Any], headers: dict[str, str] | None = None
) -> JSONResponse:
    """A problem document as a response; it carries the request's id."""
    return JSONResponse(
        document | {"request_id": request.state.request_id},
        status_code=document["status"],
        headers=headers,
        media_type=MEDIA_TYPE,
    )


def _field(item: Any) -> FieldProblem:
    location = item["loc"][1:] if item["loc"] and item["loc"][0] in LOCATIONS else item["loc"]
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    allowed = item["msg"].removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        allowed = "no such field"
    elif item["type"] == "missing":
        return FieldProblem(path or "body", "nothing", "required")
    return FieldProblem(path or "body", _cut(item.get("input")), allowed)


def _cut(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= MAX_SEEN_CHARS else f"{text[:MAX_SEEN_CHARS]} ..."


async def answer_of(request: Request, error: Exception) -> JSONResponse:
    """What a layer in front of the endpoints answers; a RedisError is translated before."""
    return await (_ours if isinstance(error, MirageError) else _http)(request, error)


async def _ours(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, MirageError)
    gateway, headers = request.app.state.gateway, {}
    told: MirageError = await gateway.control.rebuild.doubted(error)
    if told.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(told.retry_after_s)))
    if isinstance(told, Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    gateway.metrics.refused(told)
    return answer(request, problem_document(told), headers)


async def _redis(request: Request, error: Exception) -> JSONResponse:
    return await _ours(request, control_plane_down(error))


async def _validation(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return await _ours(request, invalid_request(error))


async def _http(request: Request, error: Exception) -> JSONResponse:
    """What routing and the limits raise: 404, 405, 412, 413, ..."""
    assert isinstance(error, HTTPException)
    request.app.state.gateway.metrics.refused(error)
    phrase = http.HTTPStatus(error.status_code).phrase
    document = {
        "type": f"urn:mirage:problem:{phrase.lower().replace(' ', '-')}",
        "title": phrase,
        "status": error.status_code,
        "detail": error.detail if error.detail != phrase else f"{phrase}: {request.url.path}",
    }
    return answer(request, document, dict(error.headers or {}))


async def _unforeseen(request: Request, error: Exception) -> JSONResponse:
    """A defect: the log has the traceback (Starlette raises it again), the client the id."""
    structlog.get_logger("mirage.gateway").error("unforeseen", error=repr(error))
    document = {
        "type": "urn:mirage:problem:internal",
        "title": "Something failed",
        "status": 500,
        "detail": "This is a defect of the server; its log has the details under the request id.",
    }
    headers = {"x-request-id": request.state.request_id}  # this answer bypasses the inner layers
    return answer(request, document, headers)
