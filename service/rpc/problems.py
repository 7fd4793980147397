"""Errors as gRPC has them: a status code, the problem among its rich details, when to retry."""

from __future__ import annotations

from typing import NoReturn

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2
from google.rpc.status_pb2 import Status

from service.convert import filled
from service.errors import MirageError, problem_document, problem_of
from service.wire import world_pb2 as pb

DOMAIN = "mirage"
DETAILS = "grpc-status-details-bin"  # where google.rpc.Status travels


async def refuse(
    context: grpc.aio.ServicerContext[object, object], error: MirageError, request_id: str
) -> NoReturn:
    """End the call with the error's code and details."""
    code = grpc.StatusCode[problem_of(error).grpc]
    status = Status(code=code.value[0], message=error.detail)
    problem = filled(pb.Problem, problem_document(error) | {"request_id": request_id})
    reason = error_details_pb2.ErrorInfo(reason=problem_of(error).type, domain=DOMAIN)
    details = [problem, reason]
    if error.retry_after_s is not None:
        delay = Duration()
        delay.FromMilliseconds(int(1000 * error.retry_after_s))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    for detail in details:
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)
    await context.abort(code, error.detail, ((DETAILS, status.SerializeToString()),))
