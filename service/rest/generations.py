"""Generations: ask for a path, follow it (polling, server-sent events), cancel it, get its MP4."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Annotated

from fastapi import APIRouter, Header, Query, Response
from fastapi.responses import StreamingResponse

from service.auth.guard import CONFIRM_S
from service.auth.principal import Principal, PrincipalDep, Scope, requires
from service.control.callers import Caller
from service.control.frames import Frame
from service.control.requests import Generate, Progress
from service.errors import (
    Conflict,
    FieldProblem,
    FramesGone,
    InvalidRequest,
    MirageError,
    Unavailable,
    problem_document,
)
from service.gateway import Gateway, GatewayDep
from service.limits import MAX_INTEGER, MAX_PAGE, RETURN_S
from service.paths import path_request
from service.rest.answers import frame_out, generation_out
from service.rest.idempotency import Attempt, IdempotencyKey, fingerprint, once
from service.rest.preconditions import IfMatch, version_of
from service.rest.problems import RESPONSES
from service.rest.ranges import RANGED, IfRange, Range, ranged
from service.schemas import GenerationIn, GenerationList, GenerationOut
from service.tasks import beside
from service.video import mux_mp4
from service.webhooks import Errand

router = APIRouter(
    prefix="/v1/sessions/{session_id}/generations", tags=["generations"], responses=RESPONSES
)

SPAN, SPANS_AT_ONCE = 16, 8  # of a video: frames read in turn, and how many such together
EVENT_WAIT_S = 1.0  # less than a gateway that stops has for goodbyes


@router.post("", status_code=202, response_model=GenerationOut)
@requires(Scope.WALK)
async def create_generation(
    session_id: str,
    path: GenerationIn,
    gateway: GatewayDep,
    principal: PrincipalDep,
    if_match: IfMatch = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Render every pose of a path, in order. Give `poses`, or `actions` that continue from the
    camera's last planned place. Returns at once; follow the answer's Location."""
    version = version_of(if_match)

    async def ask(request_id: str) -> Progress:
        request = await path_request(gateway.control, session_id, path, limit)
        await gateway.guard.spend_frames(principal, len(request.poses))
        return await append_and_tell(
            gateway, principal, session_id, request, request_id, path.webhook, version
        )

    async def work(attempt: Attempt) -> tuple[GenerationOut, dict[str, str]]:
        before = await attempt.request_before(session_id)
        progress = before or await ask(attempt.request_id)
        location = f"/v1/sessions/{session_id}/generations/{progress.id}"
        return generation_out(progress), {"Location": location}

    limit = gateway.settings.max_path_poses
    asked = fingerprint("generation", session_id, path.model_dump_json())
    return await once(gateway, principal, idempotency_key, asked, 202, work)


async def append_and_tell(
    gateway: Gateway,
    principal: Principal,
    session_id: str,
    request: Generate,
    request_id: str,
    webhook: str | None,
    if_version: int | None = None,
) -> Progress:
    """Ask for a path; `webhook` hears of its end. Raises what the request log raises, and
    InvalidRequest."""
    append, by_guest = gateway.control.requests.append, bool(principal.share)
    if webhook is None:
        return await append(session_id, request, request_id, if_version, by_guest)
    gateway.webhooks.check(webhook)
    errand = Errand(session=session_id, request=request_id, target=webhook, owner=principal.owner)
    await gateway.webhooks.expect(errand)
    try:
        return await append(session_id, request, request_id, if_version, by_guest)
    except MirageError:
        await gateway.webhooks.forget(errand)
        raise


@router.get("", response_model=GenerationList)
@requires(Scope.READ)
async def list_generations(
    session_id: str,
    gateway: GatewayDep,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = MAX_PAGE,
    cursor: Annotated[str | None, Query(max_length=100)] = None,
) -> GenerationList:
    """The session's last requests, observations among them, oldest first; pass `next_cursor` as
    `cursor` for the next page."""
    await gateway.control.sessions.get(session_id)
    every = await gateway.control.requests.list(session_id)
    start = 0 if cursor is None else _place_of(cursor, every) + 1
    page = every[start : start + limit]
    more = start + limit < len(every)
    return GenerationList(
        generations=[generation_out(progress) for progress in page],
        next_cursor=page[-1].id if more else None,
    )


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


@router.get(
    "/{generation_id}/events",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {}}, "description": "events"}},
)
@requires(Scope.READ)
async def follow_generation(
    session_id: str,
    generation_id: str,
    gateway: GatewayDep,
    principal: PrincipalDep,
    last_event_id: Annotated[
        int | None, Header(ge=0, le=MAX_INTEGER, description="number of the last frame seen")
    ] = None,
) -> StreamingResponse:
    """Server-sent events: `progress` whenever it changes, `frame` for each of its frames (without
    the picture; the number is the event's id), and the end of the stream once the generation is
    final; `goodbye`, a problem, when the gateway stops before; `error`, a problem, when the world
    is deleted, or the key or share link is revoked.
    A reader that comes back sends Last-Event-ID, as browsers do by themselves, and misses nothing
    that is still kept. Close an EventSource once `progress` is final: it would come back."""
    session = await gateway.control.sessions.get(session_id)  # before: no frame falls in between
    progress = await gateway.control.requests.get(session_id, generation_id)
    first = session.next_frame if progress.first_frame is None else progress.first_frame
    after = first - 1 if last_event_id is None else last_event_id
    gateway.check_streams(principal.caller)  # here, as a status can still be sent
    is_placed = last_event_id is not None or progress.first_frame is not None
    events = _events(gateway, principal, session_id, progress, after, is_placed)
    headers = {"Cache-Control": "no-cache"}
    return StreamingResponse(events, media_type="text/event-stream", headers=headers)


@router.get(
    "/{generation_id}/video.mp4",
    response_class=Response,
    responses=RANGED | {200: {"content": {"video/mp4": {}}, "description": "H.264 in MP4"}},
)
@requires(Scope.READ)
async def get_video(
    session_id: str,
    generation_id: str,
    gateway: GatewayDep,
    frames_per_s: Annotated[int, Query(ge=1, le=60)] = 15,
    range: Range = None,
    if_range: IfRange = None,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """All frames of a finished generation; 409 while it is being made, 410 once the world was
    rewound past some of them."""
    progress = await gateway.control.requests.get(session_id, generation_id)
    video = await video_of(gateway, session_id, progress, frames_per_s)
    headers = {"Content-Disposition": f'inline; filename="{progress.id}.mp4"'}
    return ranged(video, "video/mp4", headers, range, if_range, if_none_match)


async def video_of(
    gateway: Gateway, session_id: str, progress: Progress, frames_per_s: int
) -> bytes:
    """The MP4 of a final request; raises Conflict while it is none, FramesGone."""
    if not progress.state.is_final:
        raise Conflict(
            f"The generation is {progress.state}: {progress.done} of {progress.total} frames.",
            retry_after_s=1,
        )
    if progress.first_frame is None or progress.last_frame is None:
        raise Conflict(f"The generation is {progress.state} and made no frame.")
    branch = (await gateway.control.sessions.get(session_id)).branch  # a rewind may drop some
    key = (session_id, branch, progress.id, progress.first_frame, frames_per_s)
    video = gateway.videos.get(key)
    if video is not None:
        return video
    async with gateway.heavy:
        video = gateway.videos.get(key)  # another may have made it while this one waited
        if video is None:
            images = await _images(gateway, session_id, progress)
            video = await asyncio.to_thread(mux_mp4, images, frames_per_s)
            gateway.videos.put(key, video)
    return video


def _place_of(cursor: str, every: list[Progress]) -> int:
    for place, progress in enumerate(every):
        if progress.id == cursor:
            return place
    problem = FieldProblem("cursor", cursor, "a `next_cursor`; this one's request is forgotten")
    raise InvalidRequest("The cursor can't be used: start again without one.", fields=(problem,))


async def _images(gateway: Gateway, session_id: str, progress: Progress) -> list[bytes]:
    """Encoded images of the request's own frames, all of them; another camera's lie between them.
    Raises FramesGone.
    """
    assert progress.first_frame is not None and progress.last_frame is not None
    numbers, images = range(progress.first_frame, progress.last_frame + 1), list[bytes]()
    spans = [numbers[at : at + SPAN] for at in range(0, len(numbers), SPAN)]
    for at in range(0, len(spans), SPANS_AT_ONCE):
        some = spans[at : at + SPANS_AT_ONCE]
        for frames in await asyncio.gather(*(_span(gateway, session_id, one) for one in some)):
            images += [frame.image for frame in frames if frame.request_id == progress.id]
    if len(images) < progress.done:
        session = await gateway.control.sessions.get(session_id)
        raise FramesGone(
            f"The world was rewound: frames {numbers.start} to {numbers.stop - 1} of generation "
            f"{progress.id} are no longer all part of it.",
            session.branch_first_frame,
        )
    return images


async def _span(gateway: Gateway, session_id: str, numbers: range) -> list[Frame]:
    """These frames, up to where the world ends now; each segment is read once."""
    frames = list[Frame]()
    while len(frames) < len(numbers):
        after, left = numbers[len(frames)] - 1, len(numbers) - len(frames)
        some = await gateway.control.frames.read(session_id, after, limit=left)
        if not some:
            break
        frames += some
    return frames


async def _events(
    gateway: Gateway,
    principal: Principal,
    session_id: str,
    progress: Progress,
    after: int,
    is_placed: bool,
) -> AsyncIterator[str]:
    """The request's frames and its progress; what it ended as comes after its last frame."""
    try:
        with gateway.streaming(principal.caller):
            caller = principal.caller
            every = _until_final(gateway, caller, session_id, progress, after, is_placed)
            watched = beside(gateway.control.sessions.keep_alive(session_id))
            async with watched, aclosing(every) as events:
                confirmed_s = time.monotonic()
                async for event in events:
                    yield event
                    if gateway.closing.is_set():
                        yield _goodbye()
                        return
                    if time.monotonic() - confirmed_s > CONFIRM_S:
                        await gateway.guard.confirm(principal)
                        confirmed_s = time.monotonic()
    except MirageError as error:  # deleted meanwhile: a status can't be sent any more
        yield _event("error", json.dumps(problem_document(error)))


async def _until_final(
    gateway: Gateway,
    caller: Caller,
    session_id: str,
    progress: Progress,
    after: int,
    is_placed: bool,
) -> AsyncGenerator[str, None]:
    """Unless `is_placed`, `after` is a guess: a rewind that waits before the request leads back."""
    told = None
    if not progress.state.is_final:
        told = progress
        yield _event("progress", generation_out(progress).model_dump_json())
    while True:
        final = progress.state.is_final
        frames = await _next(gateway, caller, session_id, after, 0.0 if final else EVENT_WAIT_S)
        after = frames[-1].frame if frames else after
        for frame in frames:
            if is_placed and frame.request_id == progress.id:
                data = frame_out(frame, session_id).model_dump_json()
                yield f"id: {frame.frame}\n{_event('frame', data)}"
        if progress != told and not (final and frames):
            told = progress
            yield _event("progress", generation_out(progress).model_dump_json())
        elif not final:
            yield ": still here\n\n"
        if final and not frames:
            return
        if not final:
            progress = await gateway.control.requests.get(session_id, progress.id)
        if not is_placed and progress.first_frame is not None:
            after, is_placed = min(after, progress.first_frame - 1), True


async def _next(
    gateway: Gateway, caller: Caller, session_id: str, after: int, wait_s: float
) -> list[Frame]:
    """Frames after this one; a slow reader goes on with those that are still kept."""
    try:
        return await gateway.control.frames.read(session_id, after, wait_s=wait_s, caller=caller)
    except FramesGone as error:
        return await gateway.control.frames.read(session_id, error.first_available - 1)


def _goodbye() -> str:
    """Browsers come back by themselves, after `retry` milliseconds."""
    why = Unavailable("This gateway stops: follow again.", retry_after_s=RETURN_S)
    return f"retry: {int(1000 * RETURN_S)}\n" + _event("goodbye", json.dumps(problem_document(why)))


def _event(name: str, data: str) -> str:
    return f"event: {name}\ndata: {data}\n\n"
