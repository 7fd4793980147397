"""Observations: what a camera really saw, written into a world's memory."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Response

from service.auth.principal import PrincipalDep, Scope, requires
from service.control.requests import Observe, Progress
from service.gateway import GatewayDep
from service.poses import flat
from service.rest.answers import generation_out
from service.rest.forms import ObservationForm, observe, source_of, upload_of
from service.rest.idempotency import Attempt, IdempotencyKey, fingerprint, once
from service.rest.preconditions import IfMatch, version_of
from service.rest.problems import RESPONSES
from service.schemas import GenerationOut

router = APIRouter(
    prefix="/v1/sessions/{session_id}/observations", tags=["observations"], responses=RESPONSES
)


@router.post("", status_code=202, response_model=GenerationOut)
@requires(Scope.WRITE)
async def create_observation(
    session_id: str,
    form: Annotated[ObservationForm, Form(media_type="multipart/form-data")],
    gateway: GatewayDep,
    principal: PrincipalDep,
    if_match: IfMatch = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Write a picture, its depth if there is one, into the memory, as seen from `pose`. It makes no
    frame; frames that come later know it. The picture must show at least what the world's camera
    sees; the rest is cropped. Returns at once; follow the answer's Location."""
    version = version_of(if_match)
    pose = flat(form.place().pose(form.axes, "pose"))
    session = await gateway.control.sessions.get(session_id)
    source = source_of(form, gateway)
    fields = form.model_dump(exclude={"image", "depth", "mask"})

    async def ask(request_id: str) -> Progress:
        requests = gateway.control.requests
        await requests.check_room(session_id, version)
        observation = await observe(source, form, gateway, session.intrinsics)
        blob = await gateway.control.segments.put_upload(session_id, upload_of(observation))
        request = Observe(blob=blob, pose=pose, scale_m=form.scale_m)
        return await requests.append(session_id, request, request_id, version)

    async def work(attempt: Attempt) -> tuple[GenerationOut, dict[str, str]]:
        before = await attempt.request_before(session_id)
        progress = before or await ask(attempt.request_id)
        location = f"/v1/sessions/{session_id}/generations/{progress.id}"
        return generation_out(progress), {"Location": location}

    asked = fingerprint("observation", session_id, fields, await source.digest())
    return await once(gateway, principal, idempotency_key, asked, 202, work)
