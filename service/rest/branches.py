"""Worlds as a whole: fork, rewind, name (snapshot), and fork what somebody shared.

Each is done in the order of the session's requests, so it may have to wait for those before it: the
answer says how far it has come (200 = done, 202 = not yet; follow its Location).
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, Field

from service.auth.principal import Principal, PrincipalDep, Scope, requires
from service.control.branches import ForkIn, RewindIn, SnapshotIn
from service.control.requests import Progress, RequestState
from service.control.sessions import Session
from service.errors import SessionDeleted, error_of
from service.gateway import Gateway, GatewayDep
from service.limits import MAX_WAIT_S
from service.rest.answers import generation_out, snapshot_out
from service.rest.idempotency import Attempt, IdempotencyKey, fingerprint, once
from service.rest.preconditions import IfMatch, version_of
from service.rest.problems import RESPONSES
from service.schemas import GenerationOut, SnapshotList

router = APIRouter(prefix="/v1", tags=["branches"], responses=RESPONSES)

WaitS = Annotated[float, Query(ge=0, le=MAX_WAIT_S, description="for it to be done")]
DEFAULT_WAIT_S = 5.0
AS_IT_STANDS = ForkIn.model_validate({})  # what a fork without a body asks for
ANSWERS: dict[int | str, dict[str, object]] = {
    202: {"model": GenerationOut, "description": "not done yet; follow Location"}
}


class SharedForkIn(ForkIn):
    """A world that was shared, and where in it the copy begins."""

    share: str = Field(max_length=200, description="the credential of a share link")


@router.post("/sessions/{session_id}:fork", response_model=GenerationOut, responses=ANSWERS)
@requires(Scope.WRITE)
async def fork_session(
    session_id: str,
    gateway: GatewayDep,
    principal: PrincipalDep,
    ask: ForkIn = AS_IT_STANDS,
    wait_s: WaitS = DEFAULT_WAIT_S,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Open another session on this world, as it stands, after a frame or as a snapshot; nothing is
    copied. `result.session` is its id; frames before `branch_first_frame` are shared."""

    async def work(attempt: Attempt) -> tuple[GenerationOut, dict[str, str]]:
        return await _fork(attempt, principal, session_id, ask, wait_s)

    asked = fingerprint("fork", session_id, ask.model_dump_json())
    return await once(gateway, principal, idempotency_key, asked, _status, work)


@router.post("/forks", response_model=GenerationOut, responses=ANSWERS)
@requires(Scope.WRITE)
async def fork_shared(
    ask: SharedForkIn,
    gateway: GatewayDep,
    principal: PrincipalDep,
    wait_s: WaitS = DEFAULT_WAIT_S,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Make a world that somebody shared with a link one of your own, from its present state."""
    session_id = await gateway.guard.shared_world(ask.share)

    async def work(attempt: Attempt) -> tuple[GenerationOut, dict[str, str]]:
        start = ForkIn(**ask.model_dump(exclude={"share"}))
        longer_s = max(wait_s, DEFAULT_WAIT_S)  # the Location is another's, it can't be followed
        return await _fork(attempt, principal, session_id, start, longer_s, by_guest=True)

    asked = fingerprint("fork shared", ask.model_dump_json())
    return await once(gateway, principal, idempotency_key, asked, _status, work)


@router.post("/sessions/{session_id}:rewind", response_model=GenerationOut, responses=ANSWERS)
@requires(Scope.WRITE)
async def rewind_session(
    session_id: str,
    ask: RewindIn,
    gateway: GatewayDep,
    principal: PrincipalDep,
    wait_s: WaitS = DEFAULT_WAIT_S,
    if_match: IfMatch = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Undo: back to a frame or a snapshot. Whole chunks go, so what is kept may end a little before
    `frame`: `result.num_frames` says where. Frames from there on are made anew, in a new
    `result.branch`."""
    version = version_of(if_match)

    async def work(attempt: Attempt) -> tuple[GenerationOut, dict[str, str]]:
        rewind = gateway.control.branches.rewind
        progress = await _asked_before(attempt, session_id)
        progress = progress or await rewind(session_id, ask, version, attempt.request_id)
        return await _answer(gateway, session_id, progress, wait_s)

    asked = fingerprint("rewind", session_id, ask.model_dump_json())
    return await once(gateway, principal, idempotency_key, asked, _status, work)


@router.post("/sessions/{session_id}:snapshot", response_model=GenerationOut, responses=ANSWERS)
@requires(Scope.WRITE)
async def name_snapshot(
    session_id: str,
    ask: SnapshotIn,
    gateway: GatewayDep,
    principal: PrincipalDep,
    wait_s: WaitS = DEFAULT_WAIT_S,
    if_match: IfMatch = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Save: name the state that everything asked for so far leads to."""
    version = version_of(if_match)

    async def work(attempt: Attempt) -> tuple[GenerationOut, dict[str, str]]:
        snapshot = gateway.control.branches.snapshot
        progress = await _asked_before(attempt, session_id)
        progress = progress or await snapshot(session_id, ask, version, attempt.request_id)
        return await _answer(gateway, session_id, progress, wait_s)

    asked = fingerprint("snapshot", session_id, ask.model_dump_json())
    return await once(gateway, principal, idempotency_key, asked, _status, work)


@router.get("/sessions/{session_id}/snapshots")
@requires(Scope.READ)
async def list_snapshots(session_id: str, gateway: GatewayDep) -> SnapshotList:
    """All names, oldest first (there are 256 at most)."""
    found = await gateway.control.branches.snapshots(session_id)
    return SnapshotList(snapshots=[snapshot_out(snapshot) for snapshot in found])


@router.delete("/sessions/{session_id}/snapshots/{name}", status_code=204)
@requires(Scope.WRITE)
async def forget_snapshot(session_id: str, name: str, gateway: GatewayDep) -> None:
    """Take a name back; what only it kept is removed after a while."""
    await gateway.control.branches.forget(session_id, name)


async def _fork(
    attempt: Attempt,
    principal: Principal,
    session_id: str,
    start: ForkIn,
    wait_s: float,
    by_guest: bool = False,
) -> tuple[GenerationOut, dict[str, str]]:
    owner, most = principal.owner, principal.quota.max_sessions
    fork = attempt.gateway.control.branches.fork
    try:
        before = await _asked_before(attempt, session_id)  # first: it may have filled the quota
        progress = before or await fork(
            session_id, start, owner, most, attempt.request_id, attempt.seed, by_guest
        )
        return await _answer(attempt.gateway, session_id, progress, wait_s)
    except SessionDeleted:  # and with it all that was asked of it, but not what came of that
        if (made := await attempt.made()) is None:
            raise
        return _forked(attempt, made), {}


def _forked(attempt: Attempt, made: Session) -> GenerationOut:
    """What the worker said of a fork, once that is known from the fork alone."""
    progress = Progress(
        id=attempt.request_id,
        kind="fork",
        state=RequestState.DONE,
        total=0,
        result={"session": made.id, "num_frames": made.branch_first_frame},
        created_s=made.created_s,
    )
    return generation_out(progress)


async def _asked_before(attempt: Attempt, session_id: str) -> Progress | None:
    """What an earlier try has asked for, unless that failed: then this one asks anew."""
    progress = await attempt.request_before(session_id)
    if progress is None or progress.state is not RequestState.FAILED:
        return progress
    await attempt.start_over()
    return None


async def _answer(
    gateway: Gateway, session_id: str, progress: Progress, wait_s: float
) -> tuple[GenerationOut, dict[str, str]]:
    """The request as it stands after waiting; raises the problem of one that failed."""
    progress = await gateway.control.branches.wait(session_id, progress.id, wait_s)
    if progress.state is RequestState.FAILED and progress.error is not None:
        raise error_of(progress.error)
    location = f"/v1/sessions/{session_id}/generations/{progress.id}"
    return generation_out(progress), {"Location": location}


def _status(answer: BaseModel) -> int:
    assert isinstance(answer, GenerationOut)
    return 200 if RequestState(answer.state).is_final else 202
