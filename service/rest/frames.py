"""Frames: what the service says about them (a long poll), and each one's picture."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Path, Query, Response

from service.auth.principal import PrincipalDep, Scope, requires
from service.gateway import GatewayDep
from service.limits import DEFAULT_PAGE, MAX_INTEGER, MAX_PAGE, MAX_WAIT_S
from service.rest.answers import frame_out
from service.rest.problems import RESPONSES
from service.schemas import FrameList

router = APIRouter(prefix="/v1/sessions/{session_id}/frames", tags=["frames"], responses=RESPONSES)


@router.get("", response_model=FrameList)
@requires(Scope.READ)
async def list_frames(
    session_id: str,
    gateway: GatewayDep,
    principal: PrincipalDep,
    after: Annotated[int, Query(ge=-1, le=MAX_INTEGER)] = -1,
    wait_s: Annotated[float, Query(ge=0, le=MAX_WAIT_S)] = 0.0,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = DEFAULT_PAGE,
) -> FrameList:
    """Frames with a number above `after`, in order; waits up to `wait_s` while there are none.

    Where the world was rewound to before `after`, `next_after` leads back to where it stands.
    """
    frames = await gateway.control.frames.read(
        session_id, after, wait_s=wait_s, limit=limit, caller=principal.caller
    )
    if frames:
        next_after = frames[-1].frame
    else:
        next_after = min(after, (await gateway.control.sessions.get(session_id)).next_frame - 1)
    shown = [frame_out(frame, session_id) for frame in frames]
    return FrameList(frames=shown, next_after=next_after)


@router.get(
    "/{frame}",
    response_class=Response,
    responses={
        200: {"content": {"image/webp": {}, "image/jpeg": {}}, "description": "a picture"},
        304: {"description": "the client has it"},
    },
)
@requires(Scope.READ)
async def get_frame(
    session_id: str,
    frame: Annotated[int, Path(ge=0, le=MAX_INTEGER)],
    gateway: GatewayDep,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """One frame's picture, as the worker encoded it."""
    found = await gateway.control.frames.get(session_id, frame)
    tag = f'"{found.branch}-{found.frame}"'
    headers = {"ETag": tag, "Cache-Control": "no-cache"}
    if if_none_match == tag:
        return Response(status_code=304, headers=headers)
    gateway.metrics.delivered("rest", len(found.image))
    return Response(found.image, media_type=found.media_type, headers=headers)
