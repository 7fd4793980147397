"""A world as one file: export, and import of what somebody exported, here or elsewhere."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import StreamingResponse

from service.auth.principal import PrincipalDep, Scope, requires
from service.control.branches import SnapshotName
from service.errors import FieldProblem, InvalidRequest
from service.gateway import GatewayDep
from service.rest.answers import etag, session_out
from service.rest.idempotency import Attempt, IdempotencyKey, fingerprint, once
from service.rest.problems import RESPONSES
from service.schemas import SessionOut
from service.store.exports import MEDIA_TYPE

router = APIRouter(prefix="/v1", tags=["branches"], responses=RESPONSES)

TAR = {"content": {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}}


@router.get(
    "/sessions/{session_id}/export",
    response_class=Response,
    responses={200: {**TAR, "description": "a tar of world.json and the segments"}},
)
@requires(Scope.READ)
async def export_session(
    session_id: str,
    gateway: GatewayDep,
    snapshot: Annotated[
        SnapshotName | None, Query(description="this state, not the newest")
    ] = None,
) -> StreamingResponse:
    """The whole world as one file, to keep or to import elsewhere. It goes on there with the same
    bits, given the same weights."""
    export = await gateway.control.exports.open(session_id, snapshot)
    headers = {
        "Content-Length": str(export.num_bytes),
        "Content-Disposition": f'attachment; filename="{export.name}"',
    }
    return StreamingResponse(export.chunks(), media_type=MEDIA_TYPE, headers=headers)


@router.post(
    "/sessions:import",
    status_code=201,
    response_model=SessionOut,
    openapi_extra={"requestBody": {**TAR, "required": True}},
)
@requires(Scope.WRITE)
async def import_session(
    request: Request,
    gateway: GatewayDep,
    principal: PrincipalDep,
    content_type: Annotated[str | None, Header(include_in_schema=False)] = None,
    content_length: Annotated[str | None, Header(include_in_schema=False)] = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Open a session on an exported world: the file is the body. Everything in it is checked; a
    worker that has not got the weights it needs says which. With an `Idempotency-Key`, files of the
    same `Content-Length` are taken for the same one, and so are all that are sent without it."""
    if content_type != MEDIA_TYPE:
        problem = FieldProblem("Content-Type", (content_type or "nothing")[:60], MEDIA_TYPE)
        raise InvalidRequest("An import is one tar file as the body.", fields=(problem,))

    async def work(attempt: Attempt) -> tuple[SessionOut, dict[str, str]]:
        owner, most = principal.owner, principal.quota.max_sessions
        made = await attempt.session_before()
        if made is None:
            read = gateway.control.imports.read
            made = await read(request.stream(), owner, most, attempt.seed)
        session = session_out(made)
        return session, {"ETag": etag(session), "Location": f"/v1/sessions/{session.id}"}

    asked = fingerprint("import", content_length)  # the body is not read twice
    return await once(gateway, principal, idempotency_key, asked, 201, work)
