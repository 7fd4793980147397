"""`/v1/videos`: one image and a path in, one video out, in the shape of the OpenAI video API.

A video is a session with one generation; its id is the session's with a prefix, so everything else
(frames, memory, more walking) works on it too. What that API has and we have not is refused, not
ignored: other sizes, other models, a duration that the path does not have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Form, Header, Query, Response, UploadFile
from pydantic import FailFast, Field, TypeAdapter, ValidationError

from service.auth.principal import Principal, PrincipalDep, Scope, requires
from service.control import keys
from service.control.requests import Progress, RequestState
from service.control.sessions import Session, SessionState, is_session_id
from service.errors import (
    Conflict,
    FieldProblem,
    InvalidRequest,
    UnknownRequest,
    UnknownSession,
    problem_document,
)
from service.gateway import Gateway, GatewayDep
from service.limits import MAX_FOV_DEG, MAX_INTEGER, MIN_FOV_DEG
from service.paths import path_request
from service.rest.forms import SessionForm, Source, source_of
from service.rest.generations import append_and_tell, video_of
from service.rest.idempotency import Attempt, IdempotencyKey, fingerprint, once
from service.rest.problems import RESPONSES, invalid_request
from service.rest.ranges import RANGED, IfRange, Range, ranged
from service.rest.sessions import open_session
from service.schemas import Axes, Closed, PathIn
from service.words import parse_actions

router = APIRouter(prefix="/v1/videos", tags=["videos"], responses=RESPONSES)

PREFIX = "video_"
REQUEST = "r_video"  # the one generation of a video's session
FRAMES_PER_S = 15
MAX_PAGE = 100
STATES = {
    RequestState.QUEUED: "queued",
    RequestState.RUNNING: "in_progress",
    RequestState.DONE: "completed",
    RequestState.FAILED: "failed",
    RequestState.CANCELLED: "failed",
}
ITEMS: TypeAdapter[list[Any]] = TypeAdapter(Annotated[list[Any], FailFast()])


class VideoForm(Closed):
    """`input_reference` and a path: `actions` or `poses`."""

    input_reference: UploadFile = Field(description="PNG, JPEG or WebP")
    actions: str | None = Field(
        None,
        max_length=20_000,
        description="as in `forward 1.5, yaw 30`: metres and degrees; or JSON, as of a generation",
    )
    poses: str | None = Field(
        None, max_length=1_000_000, description="JSON list of poses, as of a generation"
    )
    axes: Axes = Field("opencv", description="the convention of `poses`")
    prompt: str = Field("", max_length=10_000, description="kept; models here read no text yet")
    model: str | None = Field(None, max_length=100, description="the server's, if given")
    size: str | None = Field(None, max_length=20, description="the server's, if given")
    seconds: float | None = Field(
        None, gt=0, le=600, description="plays the path's frames in this time"
    )
    webhook: str | None = Field(None, max_length=2000, description="as of a generation")
    fov_deg: float | None = Field(None, ge=MIN_FOV_DEG, le=MAX_FOV_DEG)
    depth: UploadFile | None = None
    scale_m: float | None = Field(None, ge=0.05, le=200)
    seed: int | None = Field(None, ge=0, lt=MAX_INTEGER)

    def session_form(self) -> SessionForm:
        """Raises InvalidRequest."""
        names = {"depth", "fov_deg", "scale_m", "seed"} & self.model_fields_set
        try:
            given = {name: getattr(self, name) for name in names}
            return SessionForm(image=self.input_reference, **given)
        except ValidationError as error:
            raise invalid_request(error) from None

    def path(self) -> PathIn:
        """Raises InvalidRequest."""
        given: dict[str, Any] = self.model_dump(include={"axes"}, exclude_unset=True)
        if self.poses is not None:
            given["poses"] = _items(self.poses, "poses")
        if self.actions is not None:
            is_json = self.actions.lstrip().startswith("[")
            given["actions"] = (
                _items(self.actions, "actions") if is_json else parse_actions(self.actions)
            )
        try:
            return PathIn.model_validate(given)
        except ValidationError as error:
            raise invalid_request(error) from None


def _items(text: str, field: str) -> list[Any]:
    """A JSON list; raises InvalidRequest."""
    try:
        return ITEMS.validate_json(text)
    except ValidationError as error:
        raise invalid_request(error, within=field) from None


class VideoProblem(Closed):
    code: str
    message: str


class VideoOut(Closed):
    id: str
    object: Literal["video"] = "video"
    model: str | None = Field(description="its weights; null until a worker has opened the world")
    status: Literal["queued", "in_progress", "completed", "failed"]
    progress: int | None = Field(description="percent; null once the session has forgotten it")
    created_at: int = Field(description="seconds since 1970")
    expires_at: int
    seconds: str | None = Field(description="null once the session has forgotten them")
    size: str
    prompt: str
    error: VideoProblem | None = None
    session: str = Field(description="the world it was made in")


class VideoList(Closed):
    object: Literal["list"] = "list"
    data: list[VideoOut]
    first_id: str | None
    last_id: str | None
    has_more: bool


class VideoDeleted(Closed):
    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: Literal[True] = True


class Kept(Closed):
    """What the session does not know of its video."""

    frames_per_s: int
    prompt: str


@router.post("", response_model=VideoOut)
@requires(Scope.WRITE)
async def create_video(
    form: Annotated[VideoForm, Form(media_type="multipart/form-data")],
    gateway: GatewayDep,
    principal: PrincipalDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Ask for the video of a path from one image. Returns at once; poll it, then fetch /content."""
    _check_fixed(form, gateway)
    if form.webhook is not None:
        gateway.webhooks.check(form.webhook)
    path, session_form = form.path(), form.session_form()
    source = source_of(session_form, gateway)

    async def work(attempt: Attempt) -> tuple[VideoOut, dict[str, str]]:
        video = await _create(form, path, session_form, source, gateway, principal, attempt)
        return video, {"Location": f"/v1/videos/{video.id}"}

    fields = form.model_dump(exclude={"input_reference", "depth"})
    asked = fingerprint("video", fields, await source.digest())
    return await once(gateway, principal, idempotency_key, asked, 200, work)


@router.get("")
@requires(Scope.READ)
async def list_videos(
    gateway: GatewayDep,
    principal: PrincipalDep,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 20,
    after: Annotated[str | None, Query(max_length=100)] = None,
) -> VideoList:
    """Newest first; pass `last_id` as `after` for the next page."""
    found: list[VideoOut] = []
    if after is not None and not (after.startswith(PREFIX) and is_session_id(session_of(after))):
        problem = FieldProblem("after", after, "a `last_id`, as a page before it gave it")
        raise InvalidRequest(
            "The cursor can't be used: start again without one.", fields=(problem,)
        )
    cursor = None if after is None else session_of(after)
    while len(found) <= limit:
        page = await gateway.control.sessions.list(principal.owner, MAX_PAGE, cursor)
        every = await _videos(gateway, [session.id for session in page.items])
        for session, video in zip(page.items, every, strict=True):
            if video is not None and len(found) <= limit:
                found.append(_video_out(session, *video))
        if page.next_cursor is None:
            break
        cursor = page.next_cursor
    shown = found[:limit]
    return VideoList(
        data=shown,
        first_id=shown[0].id if shown else None,
        last_id=shown[-1].id if shown else None,
        has_more=len(found) > limit,
    )


@router.get("/{video_id}")
@requires(Scope.READ)
async def get_video_job(video_id: str, gateway: GatewayDep) -> VideoOut:
    """How far it has come."""
    session, progress, kept = await _found(gateway, video_id)
    return _video_out(session, progress, kept)


@router.get(
    "/{video_id}/content",
    response_class=Response,
    responses=RANGED
    | {
        200: {
            "content": {"video/mp4": {}, "image/webp": {}, "image/jpeg": {}},
            "description": "file",
        }
    },
)
@requires(Scope.READ)
async def get_video_content(
    video_id: str,
    gateway: GatewayDep,
    variant: Literal["video", "thumbnail"] = "video",
    range: Range = None,
    if_range: IfRange = None,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """The finished MP4, or its first frame; 409 while it is being made."""
    session, progress, kept = await _found(gateway, video_id)
    if progress is None:
        raise _forgotten(session.id)
    if variant == "thumbnail":
        if progress.first_frame is None:
            raise Conflict("The video has no frame yet.", retry_after_s=1)
        frame = await gateway.control.frames.get(session.id, progress.first_frame)
        return ranged(frame.image, frame.media_type, {}, range, if_range, if_none_match)
    video = await video_of(gateway, session.id, progress, kept.frames_per_s)
    headers = {"Content-Disposition": f'inline; filename="{video_id}.mp4"'}
    return ranged(video, "video/mp4", headers, range, if_range, if_none_match)


@router.delete("/{video_id}")
@requires(Scope.WRITE)
async def delete_video(video_id: str, gateway: GatewayDep) -> VideoDeleted:
    """Delete it, its world included."""
    session, _, _ = await _found(gateway, video_id)
    await gateway.control.sessions.delete(session.id)
    return VideoDeleted(id=video_id)


async def _create(
    form: VideoForm,
    path: PathIn,
    session_form: SessionForm,
    source: Source,
    gateway: Gateway,
    principal: Principal,
    attempt: Attempt,
) -> VideoOut:
    """The path is checked before anything is made."""
    limit = gateway.settings.max_path_poses
    request = await path_request(gateway.control, None, path, limit)
    num_frames = len(request.poses)
    kept = Kept(frames_per_s=_frames_per_s(form.seconds, num_frames), prompt=form.prompt)
    if await attempt.session_before() is None:
        await gateway.guard.spend_frames(principal, num_frames)
    opened = await open_session(session_form, source, gateway, principal, attempt)
    progress = await append_and_tell(gateway, principal, opened.id, request, REQUEST, form.webhook)
    await gateway.control.redis.set(keys.video(opened.id), kept.model_dump_json())
    return _video_out(await gateway.control.sessions.get(opened.id), progress, kept)


def _check_fixed(form: VideoForm, gateway: Gateway) -> None:
    """What can be said but not chosen."""
    width, height = gateway.frame_size
    fixed = {"size": f"{width}x{height}", "model": gateway.settings.backbone}
    problems = tuple(
        FieldProblem(name, str(getattr(form, name)), f"{ours}, or leave it out")
        for name, ours in fixed.items()
        if getattr(form, name) not in (None, ours)
    )
    if problems:
        raise InvalidRequest("This server can't make such a video.", fields=problems)


def _frames_per_s(seconds: float | None, num_frames: int) -> int:
    rate = FRAMES_PER_S if seconds is None else round(num_frames / seconds)
    if not 1 <= rate <= 60:
        low, high = num_frames / 60, num_frames
        allowed = f"{low:.2f} to {high} for a path of {num_frames} frames (1 to 60 per second)"
        problem = FieldProblem("seconds", f"{seconds:g}", allowed)
        raise InvalidRequest("The path does not fill this time.", fields=(problem,))
    return rate


async def _found(gateway: Gateway, video_id: str) -> tuple[Session, Progress | None, Kept]:
    unknown = UnknownSession(f"there is no video {video_id!r}")
    if not video_id.startswith(PREFIX):
        raise unknown
    try:
        session = await gateway.control.sessions.get(session_of(video_id))
    except UnknownSession:
        raise unknown from None
    (video,) = await _videos(gateway, [session.id])
    if video is None:
        raise unknown
    return session, *video


def session_of(video_id: str) -> str:
    """The session behind a video's id."""
    return video_id.removeprefix(PREFIX)


async def _videos(
    gateway: Gateway, sessions: Sequence[str]
) -> list[tuple[Progress | None, Kept] | None]:
    """Of each; None for one that is no video. Most are none, so all are asked for at once. No
    progress: so much was asked of the session since that it has forgotten this.
    """
    async with gateway.control.redis.pipeline(transaction=False) as pipe:
        for session in sessions:
            pipe.hget(keys.requests(session), REQUEST)  # before what tells that it isn't deleted
            pipe.get(keys.video(session))
        found = await pipe.execute()
    return [
        None if kept is None else (_progress(progress), Kept.model_validate_json(kept))
        for progress, kept in zip(found[::2], found[1::2], strict=True)
    ]


def _progress(value: bytes | None) -> Progress | None:
    return None if value is None else Progress.model_validate_json(value)


def _forgotten(session: str) -> UnknownRequest:
    return UnknownRequest(
        f"session {session!r} has forgotten how its video ended: it keeps its last "
        f"{keys.REQUESTS_KEPT} requests; its frames are still to be had"
    )


def _outcome(session: Session, progress: Progress | None) -> tuple[str, dict[str, Any] | None]:
    """The status, and what went wrong."""
    if progress is None:  # it was final, or it would be known
        return "failed", problem_document(_forgotten(session.id))
    if progress.state is RequestState.CANCELLED:
        return "failed", {"title": "cancelled", "detail": "The generation was cancelled."}
    if session.state is SessionState.FAILED:  # not opened, or to be mended by an operator
        return "failed", session.error
    return STATES[progress.state], progress.error


def _video_out(session: Session, progress: Progress | None, kept: Kept) -> VideoOut:
    status, error = _outcome(session, progress)
    problem = None
    if error is not None:
        problem = VideoProblem(code=str(error["title"]), message=str(error["detail"]))
    lens = session.intrinsics
    return VideoOut.model_validate(
        {
            "id": f"{PREFIX}{session.id}",
            "model": session.weights or None,
            "status": status,
            "progress": progress and 100 * progress.done // progress.total,
            "created_at": int(session.created_s),
            "expires_at": int(session.expires_s),
            "seconds": progress and f"{progress.total / kept.frames_per_s:.2f}",
            "size": f"{lens.width}x{lens.height}",
            "prompt": kept.prompt,
            "error": problem,
            "session": session.id,
        }
    )
