"""Sessions: open from an image or a sample, look at, list, keep alive, delete."""

from __future__ import annotations

import secrets
from typing import Annotated

from fastapi import APIRouter, Form, Header, Query, Response

from service.auth.principal import Principal, PrincipalDep, Scope, requires
from service.control.sessions import Intrinsics, NewSession, is_session_id
from service.errors import FieldProblem, InvalidRequest
from service.gateway import Gateway, GatewayDep
from service.limits import DEFAULT_PAGE, MAX_PAGE
from service.rest.answers import etag, session_out
from service.rest.forms import SessionForm, Source, observe, source_of, upload_of
from service.rest.idempotency import Attempt, IdempotencyKey, fingerprint, once
from service.rest.preconditions import IfMatch, version_of
from service.rest.problems import RESPONSES
from service.schemas import MemoryOut, SessionList, SessionOut, UploadOut
from service.uploads.images import Observation

router = APIRouter(prefix="/v1/sessions", tags=["sessions"], responses=RESPONSES)


@router.post("", status_code=201, response_model=SessionOut)
@requires(Scope.WRITE)
async def create_session(
    form: Annotated[SessionForm, Form(media_type="multipart/form-data")],
    gateway: GatewayDep,
    principal: PrincipalDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Open a world from one image. Frame 0 is that image as the model sees it, at the identity
    pose; `upload` in the answer says how the image was cropped and where its lens came from."""
    source = source_of(form, gateway)
    fields = form.model_dump(exclude={"image", "depth", "mask"})

    async def work(attempt: Attempt) -> tuple[SessionOut, dict[str, str]]:
        session = await open_session(form, source, gateway, principal, attempt)
        return session, {"ETag": etag(session), "Location": f"/v1/sessions/{session.id}"}

    asked = fingerprint("session", fields, await source.digest())
    return await once(gateway, principal, idempotency_key, asked, 201, work)


@router.get("", response_model=SessionList)
@requires(Scope.READ)
async def list_sessions(
    gateway: GatewayDep,
    principal: PrincipalDep,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = DEFAULT_PAGE,
    cursor: Annotated[str | None, Query(max_length=100)] = None,
) -> SessionList:
    """Newest first; pass `next_cursor` as `cursor` for the next page."""
    if cursor is not None and not is_session_id(cursor):
        problem = FieldProblem("cursor", cursor, "a `next_cursor`, as a page before it gave it")
        raise InvalidRequest(
            "The cursor can't be used: start again without one.", fields=(problem,)
        )
    page = await gateway.control.sessions.list(principal.owner, limit, cursor)
    return SessionList(
        sessions=[session_out(session) for session in page.items], next_cursor=page.next_cursor
    )


@router.get("/{session_id}", response_model=SessionOut)
@requires(Scope.READ)
async def get_session(
    session_id: str,
    gateway: GatewayDep,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """One session; the ETag is its version."""
    session = session_out(await gateway.control.sessions.get(session_id))
    headers = {"ETag": etag(session), "Cache-Control": "no-cache"}
    if if_none_match == etag(session):
        return Response(status_code=304, headers=headers)
    body = session.model_dump_json()
    return Response(body, headers=headers, media_type="application/json")


@router.post("/{session_id}:keep-alive", status_code=204)
@requires(Scope.WALK)
async def keep_session_alive(session_id: str, gateway: GatewayDep) -> None:
    """Start the session's idle lifetime anew. What is asked of it and each step of doing that do
    the same, and so does a stream, as long as it is open, also one that only looks, and one of
    server-sent events. A world that is only polled, or read frame by frame, needs this."""
    await gateway.control.sessions.touch(session_id)


@router.delete("/{session_id}", status_code=204)
@requires(Scope.WRITE)
async def delete_session(
    session_id: str,
    gateway: GatewayDep,
    response: Response,
    if_match: IfMatch = None,
) -> None:
    """Delete a world and all it remembers; with If-Match only if it is still at that version. What
    forks of it use stays until they are gone: the header Mirage-Used-By-Forks counts those."""
    forks = (await gateway.control.collection.forks(session_id)).users  # before: this may fail
    await gateway.control.sessions.delete(session_id, if_version=version_of(if_match))
    response.headers["Mirage-Used-By-Forks"] = str(len(forks))


@router.get("/{session_id}/memory", response_model=MemoryOut)
@requires(Scope.READ)
async def get_memory(session_id: str, gateway: GatewayDep) -> MemoryOut:
    """How much the world remembers."""
    session = await gateway.control.sessions.get(session_id)
    return MemoryOut(
        memory=session.memory,
        num_points=session.num_points,
        num_bytes=session.num_bytes,
        num_segments=session.num_segments,
        coverage=session.coverage,
    )


async def open_session(
    form: SessionForm,
    source: Source,
    gateway: Gateway,
    principal: Principal,
    attempt: Attempt,
) -> SessionOut:
    """Raises InvalidUpload, TooManyRequests."""
    sessions, most = gateway.control.sessions, principal.quota.max_sessions
    made = await attempt.session_before()
    if made is None:
        await sessions.check_room(principal.owner, most)  # before any pixel is decoded
    observation = await observe(source, form, gateway)
    if made is not None:
        return session_out(made, _upload_out(observation))
    width, height = gateway.frame_size
    fx, fy, cx, cy = observation.intrinsics
    new = NewSession(
        owner=principal.owner,
        seed=secrets.randbelow(2**31) if form.seed is None else form.seed,
        memory=form.memory,
        intrinsics=Intrinsics(fx=fx, fy=fy, cx=cx, cy=cy, width=width, height=height),
    )
    upload = upload_of(observation)
    made = await sessions.create(new, upload, form.scale_m, most, attempt.seed)
    return session_out(made, _upload_out(observation))


def _upload_out(observation: Observation) -> UploadOut:
    crop = observation.crop
    return UploadOut.model_validate(
        {
            "width": observation.upload_size[0],
            "height": observation.upload_size[1],
            "crop": (crop.x, crop.y, crop.width, crop.height),
            "lens_source": observation.lens_source,
            "has_depth": observation.depth_m is not None,
        }
    )
