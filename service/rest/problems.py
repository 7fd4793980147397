"""Every error as a problem document (RFC 9457): ours, the validator's, the router's and the
unforeseen.

An answer names a few fields at most: it must cost less than the request did.
"""

from __future__ import annotations

import http
import json
import math
import re
from collections.abc import Mapping
from typing import Any

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from redis.exceptions import OutOfMemoryError, RedisError
from starlette.exceptions import HTTPException
from starlette.types import Scope

from service.errors import (
    BY_STATUS,
    DEFECT,
    INTERNAL,
    ControlPlaneDown,
    FieldProblem,
    InvalidRequest,
    MirageError,
    Unauthenticated,
    problem_document,
)
from service.limits import MAX_FIELD_PROBLEMS
from service.rest.findings import BODY, field_problem, shown
from service.schemas import ProblemOut

LOG = structlog.get_logger()
MEDIA_TYPE = "application/problem+json"
WHOLE = "whole"  # of a request's state: what to call its body, where that has another name
OPENAI = "/v1/videos"  # and below: answers in the shape of OpenAI's API
JSON, FORM = "application/json", "multipart/form-data"
ACCEPTED = {JSON: (JSON,), FORM: (FORM, "application/x-www-form-urlencoded")}
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


def invalid_request(
    error: ValidationError | RequestValidationError, within: str = "", whole: str = BODY
) -> InvalidRequest:
    """A validator's findings in our words: each field with what was seen and what is allowed.
    `within`: the field that holds what was validated; `whole`: what to call all that was sent."""
    found, skipped = error.errors(), int(isinstance(error, RequestValidationError))  # "query", ...
    fields = tuple(
        field_problem(item, item["loc"][skipped:], within, whole)
        for item in found[:MAX_FIELD_PROBLEMS]
    )
    names = ", ".join(dict.fromkeys(field.field for field in fields))
    more = len(found) - len(fields)
    others = f" and {more:,} more" if more else ""
    return InvalidRequest(f"These fields can't be used: {names}{others}.", fields=fields)


def body_type(scope: Scope) -> str | None:
    """The media type that the endpoint declares to read, JSON or FORM; None: it declares none."""
    field = getattr(scope.get("route"), "body_field", None)
    return None if field is None else str(field.field_info.media_type)


def control_plane_down(error: Exception) -> ControlPlaneDown:
    """What the client is told when Redis fails in the middle of a request: not where it is."""
    LOG.warning("redis failed", error=str(error))
    what = "is full" if isinstance(error, OutOfMemoryError) else "does not answer"
    return ControlPlaneDown(f"Redis {what}.", retry_after_s=1.0)


def answer(
    request: Request, document: dict[str, Any], headers: Mapping[str, str] | None = None
) -> Response:
    """A problem document as a response; it carries the request's id."""
    if re.match(f"{OPENAI}(/|$)", request.url.path):
        document = document | {"error": _openai_error(document)}
    text = json.dumps(document | {"request_id": request.state.request_id}, ensure_ascii=False)
    body = text.encode(errors="backslashreplace")  # half a character becomes JSON's escape of it
    return Response(body, document["status"], headers, media_type=MEDIA_TYPE)


def _openai_error(document: dict[str, Any]) -> dict[str, Any]:
    """The same as OpenAI's clients look for it: they show nothing else of an answer."""
    fields = document.get("errors") or [{"field": None}]
    return {
        "message": document["detail"],
        "type": "invalid_request_error" if document["status"] < 500 else "server_error",
        "param": fields[0]["field"],
        "code": str(document["type"]).rpartition(":")[2],
    }


async def answer_of(request: Request, error: Exception) -> Response:
    """What a layer in front of the endpoints answers; a RedisError is translated before."""
    return await (_ours if isinstance(error, MirageError) else _http)(request, error)


async def _ours(request: Request, error: Exception) -> Response:
    assert isinstance(error, MirageError)
    gateway, headers = request.app.state.gateway, {}
    told: MirageError = await gateway.control.rebuild.doubted(error)
    if told.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(told.retry_after_s)))
    if isinstance(told, Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    gateway.metrics.refused(told)
    return answer(request, problem_document(told), headers)


async def _redis(request: Request, error: Exception) -> Response:
    return await _ours(request, control_plane_down(error))


async def _validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    whole = getattr(request.state, WHOLE, BODY)
    return await _ours(request, _another_type(request) or invalid_request(error, whole=whole))


def _another_type(request: Request) -> InvalidRequest | None:
    """That the body is of a media type which the endpoint does not read, if so."""
    wanted = body_type(request.scope)
    sent = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if wanted is None or sent in ACCEPTED[wanted] or sent.endswith("+json"):
        return None
    if not sent and not _has_body(request):
        return None
    problem = FieldProblem("Content-Type", shown(sent or "nothing"), wanted)
    how = f"as {sent}" if sent else "without the header Content-Type"
    return InvalidRequest(f"The body can't be read {how}.", fields=(problem,))


def _has_body(request: Request) -> bool:
    headers = request.headers
    return headers.get("content-length", "0") != "0" or "transfer-encoding" in headers


async def _http(request: Request, error: Exception) -> Response:
    """What routing and the limits raise: 400, 404, 405, 413, 416."""
    assert isinstance(error, HTTPException)
    request.app.state.gateway.metrics.refused(error)
    phrase = http.HTTPStatus(error.status_code).phrase
    where = f"{phrase}: {request.method} {shown(request.url.path)}"
    detail = where if error.detail == phrase else error.detail
    return answer(request, BY_STATUS[error.status_code].document(detail), error.headers)


async def _unforeseen(request: Request, error: Exception) -> Response:
    """A defect: the log has the traceback (Starlette raises it again), the client the id."""
    structlog.get_logger("mirage.gateway").error("unforeseen", error=repr(error))
    headers = {"x-request-id": request.state.request_id}  # this answer bypasses the inner layers
    return answer(request, INTERNAL.document(DEFECT), headers)
