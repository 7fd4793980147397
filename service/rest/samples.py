"""The sample worlds that a session can be opened from by name."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import FileResponse

from service.auth.principal import Scope, requires
from service.gateway import GatewayDep
from service.rest.problems import RESPONSES
from service.schemas import SampleList, SampleOut

router = APIRouter(prefix="/v1/samples", tags=["samples"], responses=RESPONSES)


@router.get("", response_model=SampleList)
@requires(Scope.PUBLIC)
async def list_samples(gateway: GatewayDep) -> SampleList:
    samples = [
        SampleOut(
            name=sample.name,
            title=sample.card.title,
            description=sample.card.description,
            image=f"/v1/samples/{sample.name}.png",
            fov_deg=sample.card.fov_deg,
            has_depth=sample.depth is not None,
        )
        for sample in gateway.samples.all()
    ]
    return SampleList(samples=samples)


@router.get(
    "/{name}.png",
    response_class=FileResponse,
    responses={200: {"content": {"image/png": {}}, "description": "a picture"}},
)
@requires(Scope.PUBLIC)
async def get_sample_picture(name: str, gateway: GatewayDep) -> FileResponse:
    return FileResponse(gateway.samples.find(name).picture, media_type="image/png")
