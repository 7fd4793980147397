"""Generations: ask for a path, follow it (polling, server-sent events), cancel it, get its MP4."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Query, Response
from fastapi.responses import StreamingResponse

from service.auth.principal import PrincipalDep, Scope, requires
from service.errors import Conflict, FramesGone
from service.gateway import Gateway, GatewayDep
from service.paths import append_path
from service.requests import Progress
from service.rest.answers import frame_out, generation_out
from service.rest.idempotency import IdempotencyKey, fingerprint, once
from service.rest.problems import RESPONSES
from service.schemas import GenerationList, GenerationOut, PathIn
from service.video import mux_mp4

router = APIRouter(
    prefix="/v1/sessions/{session_id}/generations", tags=["generations"], responses=RESPONSES
)

FETCHED_AT_ONCE = 16
EVENT_WAIT_S = 1.0


@router.post("", status_code=202, response_model=GenerationOut)
@requires(Scope.WALK)
async def create_generation(
    session_id: str,
    path: PathIn,
    gateway: GatewayDep,
    principal: PrincipalDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Render every pose of a path, in order. Give `poses`, or `actions` that continue from the
    camera's last planned place. Returns at once; follow the answer's Location."""

    async def work() -> tuple[GenerationOut, dict[str, str]]:
        limit = gateway.settings.max_path_poses
        progress = await append_path(gateway.control, session_id, path, limit)
        location = f"/v1/sessions/{session_id}/generations/{progress.id}"
        return generation_out(progress), {"Location": location}

    asked = fingerprint("generation", session_id, path.model_dump_json())
    return await once(gateway, principal, idempotency_key, asked, 202, work)


@router.get("", response_model=GenerationList)
@requires(Scope.READ)
async def list_generations(session_id: str, gateway: GatewayDep) -> GenerationList:
    """The session's last requests, oldest first."""
    await gateway.control.sessions.get(session_id)
    every = await gateway.control.requests.list(session_id)
    return GenerationList(generations=[generation_out(progress) for progress in every])


@router.get("/{generation_id}", response_model=GenerationOut)
@requires(Scope.READ)
async def get_generation(session_id: str, generation_id: str, gateway: GatewayDep) -> GenerationOut:
    """How far it has come."""
    return generation_out(await gateway.control.requests.get(session_id, generation_id))


@router.post("/{generation_id}:cancel", response_model=GenerationOut)
@requires(Scope.WALK)
async def cancel_generation(
    session_id: str, generation_id: str, gateway: GatewayDep
) -> GenerationOut:
    """End it with the next step; frames that exist stay. Final ones are left as they are."""
    return generation_out(await gateway.control.requests.cancel(session_id, generation_id))


@router.get("/{generation_id}/events", response_class=StreamingResponse)
@requires(Scope.READ)
async def follow_generation(
    session_id: str, generation_id: str, gateway: GatewayDep
) -> StreamingResponse:
    """Server-sent events: `progress` whenever it changes, `frame` for each new frame (without its
    picture), and the end of the stream once the generation is final."""
    progress = await gateway.control.requests.get(session_id, generation_id)
    session = await gateway.control.sessions.get(session_id)
    events = _events(gateway, session_id, progress, session.next_frame - 1)
    headers = {"Cache-Control": "no-cache"}
    return StreamingResponse(events, media_type="text/event-stream", headers=headers)


@router.get(
    "/{generation_id}/video.mp4",
    response_class=Response,
    responses={200: {"content": {"video/mp4": {}}, "description": "H.264 in MP4"}},
)
@requires(Scope.READ)
async def get_video(
    session_id: str,
    generation_id: str,
    gateway: GatewayDep,
    frames_per_s: Annotated[int, Query(ge=1, le=60)] = 15,
) -> Response:
    """All frames of a finished generation; 409 while it is being made."""
    progress = await gateway.control.requests.get(session_id, generation_id)
    async with gateway.heavy:
        images = await _images(gateway, session_id, progress)
        video = await asyncio.to_thread(mux_mp4, images, frames_per_s)
    disposition = f'inline; filename="{generation_id}.mp4"'
    return Response(video, media_type="video/mp4", headers={"Content-Disposition": disposition})


async def _images(gateway: Gateway, session_id: str, progress: Progress) -> list[bytes]:
    if not progress.state.is_final:
        raise Conflict(
            f"The generation is {progress.state}: {progress.done} of {progress.total} frames.",
            retry_after_s=1,
        )
    if progress.first_frame is None or progress.last_frame is None:
        raise Conflict(f"The generation is {progress.state} and made no frame.")
    numbers = range(progress.first_frame, progress.last_frame + 1)
    images: list[bytes] = []
    for start in range(0, len(numbers), FETCHED_AT_ONCE):
        some = numbers[start : start + FETCHED_AT_ONCE]
        reads = (gateway.control.frames.get(session_id, number) for number in some)
        images += [frame.image for frame in await asyncio.gather(*reads)]
    return images


async def _events(
    gateway: Gateway, session_id: str, progress: Progress, after: int
) -> AsyncIterator[str]:
    yield _event("progress", generation_out(progress).model_dump_json())
    while not progress.state.is_final:
        try:
            frames = await gateway.control.frames.read(session_id, after, wait_s=EVENT_WAIT_S)
        except FramesGone as error:  # a slow reader: it goes on with what there is
            after = error.first_available - 1
            continue
        for frame in frames:
            after = frame.frame
            if frame.request_id == progress.id:
                yield _event("frame", frame_out(frame, session_id).model_dump_json())
        before = progress
        progress = await gateway.control.requests.get(session_id, progress.id)
        if progress != before:
            yield _event("progress", generation_out(progress).model_dump_json())
        elif not frames:
            yield ": still here\n\n"


def _event(name: str, data: str) -> str:
    return f"event: {name}\ndata: {data}\n\n"
