"""What a stream's client asks for, done: poses, paths, inputs, observations, controls."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator

import structlog
from pydantic import ValidationError
from redis.exceptions import RedisError

from service.auth.principal import Scope
from service.control.branches import ForkIn, RewindIn
from service.control.requests import Generate, Progress, RequestState, View, new_request_id
from service.convert import filled
from service.errors import (
    FieldProblem,
    Forbidden,
    InvalidRequest,
    MirageError,
    TooManyRequests,
    Unavailable,
    cancelled,
    error_of,
    problem_document,
)
from service.paths import last_camera, path_request
from service.poses import flat, unflat
from service.rest.forms import ObservationForm, upload_file
from service.rest.observations import create_observation
from service.rest.problems import invalid_request
from service.schemas import FlatPose
from service.stream import answers
from service.stream.inputs import held
from service.stream.messages import (
    AnyMessage,
    CancelMessage,
    ForkMessage,
    Incoming,
    InputMessage,
    ObserveMessage,
    OpenMessage,
    PathMessage,
    PingMessage,
    PlayMessage,
    PoseMessage,
    SeekMessage,
)
from service.stream.motion import Sighting
from service.stream.player import Slices
from service.stream.talk import Talk
from service.wire import world_pb2 as pb

LOG = structlog.get_logger()
BRANCHING_S = 20.0  # for a fork or rewind to be done
OUTAGE_S = 2.0  # without a frame: cameras that keys move wait for one
STEPS_PER_S = 15.0  # of cameras that keys move, unless the stream has a rate
NEEDS: dict[type[AnyMessage | View], Scope] = {
    PlayMessage: Scope.READ,
    PingMessage: Scope.READ,
    OpenMessage: Scope.READ,
    ObserveMessage: Scope.WRITE,
    SeekMessage: Scope.WRITE,
    ForkMessage: Scope.WRITE,
}  # all others: Scope.WALK
REQUESTS = (PathMessage, CancelMessage, ObserveMessage, SeekMessage, ForkMessage)  # of REST, too


async def listen(talk: Talk, incoming: AsyncIterator[Incoming]) -> None:
    """Do what the client says, in order; what can't be done is answered and the stream goes on."""
    async for message in incoming:
        sequence = getattr(message, "sequence", 0)
        try:
            if isinstance(message, MirageError):
                raise message
            await _handle(talk, message)
        except MirageError as error:
            talk.gateway.metrics.refused(error)
            await talk.say(sequence, error=answers.problem(error))
        except RedisError:  # whoever opened the stream says so
            raise
        except Exception:
            LOG.exception("message failed", type=type(message).__name__)
            await talk.say(sequence, error=answers.defect())


async def _handle(talk: Talk, message: AnyMessage | View) -> None:  # noqa: C901 one case each
    needs = NEEDS.get(type(message), Scope.WALK)
    if needs not in talk.principal.scopes:
        kind = getattr(message, "type", "pose")
        raise Forbidden(f"A {kind!r} message needs the scope `{needs}`.")
    if isinstance(message, REQUESTS):
        await talk.gateway.guard.spend_request(talk.principal)
    match message:
        case View():
            await _live(talk, message)
        case PoseMessage():
            await _live(talk, message.view())
        case InputMessage():
            await _input(talk, message)
        case PathMessage():
            await _path(talk, message)
        case CancelMessage():
            await _cancel(talk, message)
        case ObserveMessage():
            await _observe(talk, message)
        case PlayMessage():
            talk.player.set(message.paused, message.speed)
            talk.path_news.set()
            session = await talk.control.sessions.get(talk.session_id)
            await talk.say(message.sequence, state=answers.status(session, talk.player))
        case SeekMessage():
            await _seek(talk, message)
        case ForkMessage():
            await _fork(talk, message)
        case PingMessage():
            await talk.say(message.sequence, pong=answers.pong(message.client_time_ms))
        case OpenMessage():
            problem = FieldProblem("open", "a second one", "at the beginning, or in the address")
            raise InvalidRequest("The stream is open already.", fields=(problem,))


async def _live(talk: Talk, view: View) -> None:
    now_s = time.monotonic()
    if talk.opening.extrapolate:
        clock_s = now_s if view.client_time_ms is None else view.client_time_ms / 1000
        seen, lead_s = Sighting(unflat(view.pose), clock_s), talk.latency.median_s or 0.0
        view = view._replace(pose=flat(talk.motion.predicted(view.camera, seen, lead_s)))
    talk.places[view.camera] = view.pose
    await _show(talk, view, now_s)


async def _show(talk: Talk, view: View, now_s: float) -> None:
    await talk.budget.claim(view.camera)
    request_id = talk.budget.new_request_id()
    talk.latency.asked(request_id, now_s)  # before it is: its frame may overtake the answer
    append = talk.control.requests.append_live
    await append(talk.session_id, view, request_id, talk.trace, talk.by_guest)


async def _input(talk: Talk, message: InputMessage) -> None:
    sticks = (message.forward, message.right, message.up, message.yaw, message.pitch)
    now = held(sticks, message.keys, message.move_m_per_s, message.turn_deg_per_s)
    await _place(talk, message.camera)
    talk.held[message.camera] = (now, message)
    talk.input_news.set()


async def _place(talk: Talk, camera: int) -> FlatPose:
    """Where keys move this camera on from: where the world has it, at first, and after a path or a
    rewind.
    """
    if camera not in talk.places:
        talk.places[camera] = flat(await last_camera(talk.control, talk.session_id, camera))
    return talk.places[camera]


async def move_cameras(talk: Talk) -> None:
    """Advance the cameras whose keys are held, in real time. Nobody steers what he does not see, so
    in an outage a camera waits; its place is asked for all the same."""
    period_s = 1 / (talk.opening.frames_per_s or STEPS_PER_S)
    last_s = time.monotonic()
    while True:
        moving = {camera: one for camera, one in talk.held.items() if one[0].moves}
        if not moving or talk.player.paused:
            talk.input_news.clear()
            await talk.input_news.wait()
            last_s = time.monotonic() - period_s  # the first step is a full one
            continue
        async with talk.steering:
            now_s = time.monotonic()
            is_blind = talk.latency.silent_s(now_s) > OUTAGE_S + period_s
            for camera in moving:
                waits = is_blind and camera in (talk.opening.cameras or moving)
                await _step(talk, camera, now_s, 0.0 if waits else now_s - last_s)
        last_s = now_s
        await asyncio.sleep(max(0.0, period_s - (time.monotonic() - now_s)))


async def _step(talk: Talk, camera: int, now_s: float, elapsed_s: float) -> None:
    speeds, message = talk.held[camera]
    try:
        place = flat(speeds.advanced(unflat(await _place(talk, camera)), elapsed_s))
        talk.places[camera] = place
        view = View(place, camera, message.sequence, message.client_time_ms)
        await _show(talk, view, now_s)
    except MirageError as error:  # the edge of the world, a full log, or a rewind that waits
        del talk.held[camera]
        await talk.say(message.sequence, error=answers.problem(error))


async def _path(talk: Talk, message: PathMessage) -> None:
    """Ask for the whole path at once, or, at a rate, for its first pieces."""
    settings, control = talk.gateway.settings, talk.control
    if len(talk.paths) >= settings.max_backlog:
        raise TooManyRequests(
            f"{len(talk.paths)} paths of this stream are waiting",
            retry_after_s=1.0,
            limit="backlog",
        )
    request = await path_request(control, talk.session_id, message, settings.max_path_poses)
    await talk.gateway.guard.spend_frames(talk.principal, len(request.poses))
    if not talk.player.is_paced:
        progress = await _walk(talk, request)
    else:
        path = Slices(new_request_id(), request, settings.chunk_frames, time.time())
        talk.paths[path.id] = path
        talk.path_news.set()
        progress = path.progress(is_over=False)
    await talk.say(message.sequence, accepted=answers.generation(progress))


async def _walk(talk: Talk, request: Generate, request_id: str | None = None) -> Progress:
    """Ask for a path or a piece of one; keys go on from its end."""
    append = talk.control.requests.append
    async with talk.steering:
        progress = await append(talk.session_id, request, request_id, by_guest=talk.by_guest)
        talk.places.pop(request.camera, None)
    talk.requests[progress.id] = progress
    return progress


async def feed_paths(talk: Talk) -> None:
    """Give the worker the next piece of the first path while play is near enough."""
    size = talk.gateway.settings.chunk_frames
    lead = max(talk.opening.lead_frames, 2 * size)
    while True:
        talk.path_news.clear()
        path = next((one for one in talk.paths.values() if not one.is_asked), None)
        waits = path is None or sum(one.ahead for one in talk.paths.values()) + size > lead
        if path is None or waits or talk.player.paused:
            await talk.path_news.wait()
            continue
        name, request = path.next_piece()
        try:
            await _walk(talk, request, name)
            if path.ended is not None:  # meanwhile
                await talk.cancel_path(path)
        except MirageError as error:
            path.ended, path.error = RequestState.FAILED, problem_document(error)


async def _cancel(talk: Talk, message: CancelMessage) -> None:
    path = talk.paths.get(message.id)
    if path is None:
        progress = await talk.control.requests.cancel(talk.session_id, message.id)
    else:
        await talk.cancel_path(path)
        progress = path.progress(talk.is_over(path))
    await talk.say(message.sequence, progress=answers.generation(progress))


async def _observe(talk: Talk, message: ObserveMessage) -> None:
    form = _form(message)
    answer = await create_observation(talk.session_id, form, talk.gateway, talk.principal)
    accepted = filled(pb.Generation, json.loads(bytes(answer.body)))
    progress = await talk.control.requests.get(talk.session_id, accepted.id)
    talk.requests[progress.id] = progress
    await talk.say(message.sequence, accepted=accepted)


def _form(message: ObserveMessage) -> ObservationForm:
    """What REST gets for it; raises InvalidRequest in the same words."""
    lens = {} if message.intrinsics is None else message.intrinsics.model_dump()
    try:
        return ObservationForm(
            image=upload_file(message.image),
            depth=None if message.depth is None else upload_file(message.depth),
            mask=None if message.mask is None else upload_file(message.mask),
            pose=message.pose.model_dump_json(exclude_none=True),
            axes=message.axes,
            fov_deg=message.fov_deg,
            scale_m=message.scale_m,
            **lens,
        )
    except ValidationError as error:
        raise invalid_request(error) from None


async def _seek(talk: Talk, message: SeekMessage) -> None:
    """Rewind; whoever follows the frames sees the new branch and says so, to every stream.

    What this stream asked for before is cancelled: it leads on from where the world will not be.
    Keys that are held wait, and go on from where the world is then.
    """
    await talk.cancel_paths()
    async with talk.steering:
        ask = RewindIn(frame=message.frame)
        progress = await talk.control.branches.rewind(talk.session_id, ask)
        result = await _branched(talk, progress)
        talk.places.clear()
        talk.sought = (int(result["branch"]), message.sequence)
    talk.player.interrupt()


async def _fork(talk: Talk, message: ForkMessage) -> None:
    ask = ForkIn(frame=message.frame, seed=message.seed)
    owner, quota = talk.principal.owner, talk.principal.quota
    progress = await talk.control.branches.fork(talk.session_id, ask, owner, quota.max_sessions)
    result = await _branched(talk, progress)
    forked = pb.Forked(session=str(result["session"]), after=int(result["num_frames"]) - 1)
    await talk.say(message.sequence, forked=forked)


async def _branched(talk: Talk, progress: Progress) -> dict[str, str | int]:
    """What became of a fork or rewind; one that takes too long is cancelled.

    Raises what it failed with, Unavailable (not done in time), Conflict (cancelled).
    """
    done = await talk.control.branches.wait(talk.session_id, progress.id, BRANCHING_S)
    is_late = not done.state.is_final
    if is_late:
        done = await talk.control.requests.cancel(talk.session_id, progress.id)
    if done.error is not None:
        raise error_of(done.error)
    if done.result is not None:
        return dict(done.result)
    if is_late:
        raise Unavailable(
            f"The {done.kind} was not done within {BRANCHING_S:g} s, so it is cancelled: no worker "
            "is free, or what was asked before it takes long. Send it again later.",
            retry_after_s=5.0,
        )
    raise cancelled(done.kind)
