"""Errors as gRPC has them: a status code, the problem among its rich details, when to retry."""

from __future__ import annotations

from typing import Any, NoReturn

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from google.rpc.status_pb2 import Status

from service.convert import filled
from service.errors import BY_TYPE, MirageError, problem_document
from service.telemetry import REQUEST_ID_HEADER
from service.wire import world_pb2 as pb

DOMAIN = "mirage"
DETAILS = "grpc-status-details-bin"  # where google.rpc.Status travels


def note_request_id(context: Any, request_id: str) -> None:
    """Where a call's client finds it: in the trailing metadata."""
    context.set_trailing_metadata(((REQUEST_ID_HEADER, request_id),))


async def refuse(context: Any, error: MirageError, request_id: str) -> NoReturn:
    """End the call with the error's code and details."""
    note_request_id(context, request_id)
    await refuse_document(context, problem_document(error) | {"request_id": request_id})


async def refuse_document(context: Any, document: dict[str, Any]) -> NoReturn:
    """End the call with what REST would have answered."""
    slug = str(document["type"]).rpartition(":")[2]
    code = grpc.StatusCode[BY_TYPE[slug].grpc]
    status = Status(code=code.value[0], message=document["detail"])
    for detail in _details(document, slug):
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)
    trailing = (*context.trailing_metadata(), (DETAILS, status.SerializeToString()))
    await context.abort(code, document["detail"], trailing)
    raise AssertionError("abort raises")


def _details(document: dict[str, Any], slug: str) -> list[Message]:
    details: list[Message] = [
        filled(pb.Problem, document),
        error_details_pb2.ErrorInfo(reason=slug, domain=DOMAIN),
    ]
    if document.get("retry_after_s") is not None:
        delay = Duration()
        delay.FromMilliseconds(int(1000 * document["retry_after_s"]))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    return details
