"""The request log: bounded, ordered, idempotent; live poses replace each other."""

from __future__ import annotations

import pytest
from plane import leases_of, new_session, step
from pydantic import ValidationError

from service.control import keys
from service.control.plane import ControlPlane
from service.control.requests import REQUEST, Fork, Generate, Init, LivePose, Observe, num_poses
from service.control.sessions import IDENTITY
from service.errors import (
    InvalidRequest,
    SessionDeleted,
    TooManyRequests,
    UnknownRequest,
    UnknownSession,
)
from service.settings import Settings

PATH = Generate(poses=[IDENTITY] * 3)


@pytest.mark.parametrize(
    "message",
    [
        Init(blob="b", pose=IDENTITY),
        Observe(blob="b", pose=IDENTITY),
        Generate(poses=[IDENTITY], client_time_ms=1.5),
        LivePose(pose=IDENTITY, sequence=3),
    ],
)
def test_messages_survive_json(message: Init | Observe | Generate | LivePose) -> None:
    assert REQUEST.validate_json(message.model_dump_json()) == message


@pytest.mark.parametrize(
    "text",
    [
        '{"kind":"generate","poses":[]}',
        '{"kind":"generate","poses":[[1,2,3]]}',
        '{"kind":"dance"}',
        '{"kind":"generate","protocol":2,"poses":[[1,0,0,0,0,1,0,0,0,0,1,0,0,0,0,1]]}',
        '{"kind":"generate","poses":[[1,0,0,0,0,1,0,0,0,0,1,0,0,0,0,1]],"extra":1}',
    ],
)
def test_what_is_not_understood_is_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        REQUEST.validate_json(text)


def test_an_observation_renders_nothing() -> None:
    kinds = [Init(blob="b", pose=IDENTITY), Observe(blob="b", pose=IDENTITY), PATH]
    assert [num_poses(message) for message in kinds] == [1, 0, 3]


async def test_requests_keep_their_order(control: ControlPlane) -> None:
    session = await new_session(control)
    ids = [(await control.requests.append(session.id, PATH)).id for _ in range(5)]
    owned = await leases_of(control).load(session.id)
    assert [entry.id for entry in owned.entries] == [session.init_request, *ids]
    assert [one.id for one in await control.requests.list(session.id)][1:] == ids


async def test_the_same_id_is_appended_once(control: ControlPlane) -> None:
    session = await new_session(control)
    first = await control.requests.append(session.id, PATH, request_id="mine")
    again = await control.requests.append(session.id, PATH, request_id="mine")
    assert again == first
    assert await control.redis.xlen(keys.log(session.id)) == 2


async def test_the_backlog_is_bounded_and_live_poses_never_fill_it(
    control: ControlPlane, settings: Settings
) -> None:
    session = await new_session(control)
    for i in range(200):
        await control.requests.append_live(session.id, LivePose(pose=IDENTITY, sequence=i))
    assert await control.redis.xlen(keys.log(session.id)) == 2
    for _ in range(settings.max_backlog - 2):
        await control.requests.append(session.id, PATH)
    with pytest.raises(TooManyRequests) as caught:
        await control.requests.append(session.id, PATH)
    assert caught.value.retry_after_s == 1.0


async def test_a_live_pose_does_not_jump_over_a_path(control: ControlPlane) -> None:
    session = await new_session(control)
    await control.requests.append_live(session.id, LivePose(pose=IDENTITY, sequence=1))
    await control.requests.append(session.id, PATH)
    await control.requests.append_live(session.id, LivePose(pose=IDENTITY, sequence=2))
    owned = await leases_of(control).load(session.id)
    assert [entry.message.kind for entry in owned.entries] == ["init", "live", "generate", "live"]


async def test_a_path_that_is_too_long_is_refused_with_both_numbers(
    control: ControlPlane, settings: Settings
) -> None:
    session = await new_session(control)
    with pytest.raises(InvalidRequest) as caught:
        await control.requests.append(session.id, Generate(poses=[IDENTITY] * 1025))
    (field,) = caught.value.fields
    assert (field.field, field.seen, field.allowed) == ("poses", "1025 poses", "at most 1024")


async def test_an_owned_session_tells_its_owner_and_nobody_else(control: ControlPlane) -> None:
    session = await new_session(control)
    await leases_of(control, "w7").acquire(session.id)
    waiting = await control.redis.xlen(keys.WAKE)
    await control.requests.append(session.id, PATH)
    assert await control.redis.xlen(keys.inbox("w7")) == 1
    assert await control.redis.xlen(keys.WAKE) == waiting


async def test_cancel_is_a_flag_until_the_owner_acts(control: ControlPlane) -> None:
    session, leases = await new_session(control), leases_of(control)
    path = await control.requests.append(session.id, PATH)
    assert (await control.requests.cancel(session.id, path.id)).cancel_requested
    assert (await control.requests.get(session.id, path.id)).state == "queued"
    owned = await leases.load(session.id)
    assert owned.progress[path.id].cancel_requested
    assert not owned.progress[session.init_request].cancel_requested


async def test_cancelling_what_is_over_changes_nothing(control: ControlPlane) -> None:
    session, leases = await new_session(control), leases_of(control)
    lease = await leases.acquire(session.id)
    assert lease
    await leases.commit(session.id, lease, step(await leases.load(session.id), 0, 1))
    first = await control.requests.cancel(session.id, session.init_request)
    assert (first.state, first.cancel_requested) == ("done", False)


async def test_what_is_unknown_is_said_to_be(control: ControlPlane) -> None:
    session = await new_session(control)
    with pytest.raises(UnknownRequest, match="'nothing'"):
        await control.requests.get(session.id, "nothing")
    with pytest.raises(UnknownRequest):
        await control.requests.cancel(session.id, "nothing")
    with pytest.raises(UnknownSession):
        await control.requests.append("nobody", PATH)
    await control.sessions.delete(session.id)
    for call in (control.requests.get, control.requests.cancel):
        with pytest.raises(SessionDeleted):
            await call(session.id, session.init_request)


async def test_progress_records_are_bounded(control: ControlPlane) -> None:
    session = await new_session(control)
    for _ in range(keys.REQUESTS_KEPT + 5):
        await control.requests.append(session.id, PATH)
        await control.redis.xtrim(keys.log(session.id), maxlen=1, approximate=False)
    assert len(await control.requests.list(session.id)) == keys.REQUESTS_KEPT


async def test_guests_leave_the_owner_its_backlog_and_its_progress(
    control: ControlPlane, settings: Settings
) -> None:
    session, fork = await new_session(control), Fork(target="s1")
    mine = await control.requests.append(session.id, PATH)
    for _ in range(keys.REQUESTS_KEPT + 5):
        last = await control.requests.append(session.id, fork, by_guest=True)
        await control.redis.xtrim(keys.log(session.id), maxlen=1, approximate=False)
    kept = [one.id for one in await control.requests.list(session.id)]
    assert mine.id in kept and last.id in kept and len(kept) == keys.REQUESTS_KEPT + 2
    half = settings.max_backlog // 2
    for _ in range(half - 1):
        await control.requests.append(session.id, fork, by_guest=True)
    with pytest.raises(TooManyRequests, match=f"{half} requests"):
        await control.requests.append(session.id, fork, by_guest=True)
    for _ in range(half):
        await control.requests.append(session.id, PATH)
    await control.sessions.delete(session.id)
    assert not await control.redis.exists(keys.guests_order(session.id))


async def test_the_newest_live_pose_wins_for_each_camera(control: ControlPlane) -> None:
    session = await new_session(control)
    for sequence, camera in enumerate((0, 1, 0, 2, 0, 1)):
        live = LivePose(pose=IDENTITY, sequence=sequence, camera=camera)
        await control.requests.append_live(session.id, live)
    owned = await leases_of(control).load(session.id)
    waiting = [entry.message for entry in owned.entries if isinstance(entry.message, LivePose)]
    assert [(one.camera, one.sequence) for one in waiting] == [(2, 3), (0, 4), (1, 5)]


async def test_each_camera_goes_on_from_its_own_last_pose(control: ControlPlane) -> None:
    session = await new_session(control)
    far, near = [*IDENTITY[:11], 9.0, *IDENTITY[12:]], [*IDENTITY[:11], 1.0, *IDENTITY[12:]]
    await control.requests.append(session.id, Generate(poses=[far], camera=3))
    await control.requests.append_live(session.id, LivePose(pose=near))
    assert await control.requests.last_pose(session.id) == near
    assert await control.requests.last_pose(session.id, camera=3) == far
    assert await control.requests.last_pose(session.id, camera=4) == IDENTITY  # of the first image
