"""What a world remembers as a file of coloured points."""

from __future__ import annotations

import asyncio
from typing import Annotated, Literal

from fastapi import APIRouter, Header, Query, Response

from service.auth.principal import Scope, requires
from service.errors import FieldProblem, InvalidRequest
from service.gateway import GatewayDep
from service.limits import DEFAULT_POINTS, MAX_POINTS
from service.points.cloud import Cloud
from service.points.files import GLB_AXES, MEDIA_TYPES, glb, ply
from service.rest.problems import RESPONSES
from service.schemas import Axes

router = APIRouter(
    prefix="/v1/sessions/{session_id}/memory", tags=["sessions"], responses=RESPONSES
)

FORMATS: dict[str, dict[str, object]] = {kind: {} for kind in MEDIA_TYPES.values()}
COUNT = {"schema": {"type": "integer"}}


@router.get(
    "/points",
    response_class=Response,
    responses={
        200: {
            "content": FORMATS,
            "description": "the file",
            "headers": {
                "Mirage-Points": COUNT | {"description": "in the file"},
                "Mirage-Points-Remembered": COUNT | {"description": "by the world"},
            },
        },
        304: {"description": "the client has it"},
    },
)
@requires(Scope.READ)
async def get_points(
    session_id: str,
    gateway: GatewayDep,
    format: Annotated[Literal["ply", "glb"], Query()] = "ply",
    axes: Annotated[
        Axes | None, Query(description="of a PLY file, by default `opencv`; GLB has its own")
    ] = None,
    max_points: Annotated[
        int, Query(ge=1, le=MAX_POINTS, description="of more an even choice is made")
    ] = DEFAULT_POINTS,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """The points that the world remembers, in the colours that were seen; metres, frame 0 at the
    origin. GLB opens in game engines and Blender (y up, -z forward), PLY in everything that knows
    point clouds. The same version gives the same file; no worker is needed."""
    if format == "glb" and axes not in (None, GLB_AXES):
        problem = FieldProblem("axes", str(axes), f"{GLB_AXES}, or nothing, for GLB")
        raise InvalidRequest("glTF has axes of its own: ask for PLY.", fields=(problem,))
    clouds = gateway.control.clouds
    head = await clouds.head(session_id)
    headers = {"ETag": f'"{head.version}"', "Cache-Control": "no-cache"}
    if if_none_match == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    cloud = await clouds.read(head, max_points)
    headers |= {
        "Content-Disposition": f'attachment; filename="{session_id}.{format}"',
        "Mirage-Points": str(len(cloud.positions)),
        "Mirage-Points-Remembered": str(cloud.num_remembered),
    }
    title = f"mirage world {session_id} version {head.version}"
    content = await asyncio.to_thread(_file, cloud, format, axes or "opencv", title)
    return Response(content, headers=headers, media_type=MEDIA_TYPES[format])


def _file(cloud: Cloud, form: str, axes: str, title: str) -> bytes:
    return glb(cloud, title) if form == "glb" else ply(cloud, axes, title)
