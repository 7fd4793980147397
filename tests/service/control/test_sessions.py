"""Session records on a real Valkey."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from plane import IMAGE, INTRINSICS, leases_of, new_session, step
from redis.exceptions import ConnectionError

from service.control import keys, sessions, sweeper
from service.control.plane import ControlPlane
from service.control.requests import Generate
from service.control.sessions import (
    IDENTITY,
    TRANSITIONS,
    NewSession,
    Sessions,
    SessionState,
    states_before,
)
from service.errors import (
    Conflict,
    LeaseLost,
    SessionDeleted,
    TooManyRequests,
    Unavailable,
    UnknownSession,
)
from service.settings import Settings
from service.store.rebuild import MARKER
from service.store.segments import Upload
from service.tasks import end


async def test_a_new_session_waits_with_its_first_request_queued(control: ControlPlane) -> None:
    session = await new_session(control, seed=7, memory="null")
    assert (session.state, session.version, session.next_frame) == ("waiting", 1, 0)
    assert (session.seed, session.memory, session.tip) == (7, "null", "")
    assert session.intrinsics == INTRINSICS and session.pose == IDENTITY
    first = await control.requests.get(session.id, session.init_request)
    assert (first.kind, first.state, first.total) == ("init", "queued", 1)
    assert await control.redis.xlen(keys.WAKE) == 1
    assert await control.sessions.get(session.id) == session


async def test_a_seed_of_63_bits_survives(control: ControlPlane) -> None:
    session = await new_session(control, seed=2**63 - 1)
    assert (await control.sessions.get(session.id)).seed == 2**63 - 1


async def test_unknown_and_deleted_are_told_apart(control: ControlPlane) -> None:
    with pytest.raises(UnknownSession, match="'nobody'"):
        await control.sessions.get("nobody")
    session = await new_session(control)
    await control.sessions.delete(session.id)
    for call in (control.sessions.get, control.sessions.delete, control.sessions.touch):
        with pytest.raises(SessionDeleted):
            await call(session.id)


async def test_what_is_gone_is_not_called_a_failure(
    control: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lost(*_: object) -> None:
        raise ConnectionError("lost on the way")

    session = await new_session(control)
    with monkeypatch.context() as patched:
        patched.setattr(control.redis, "zscore", lost)
        await control.sessions.delete(session.id)
    with pytest.raises(SessionDeleted):
        await control.sessions.get(session.id)
    await control.redis.zadd(keys.EXPIRY, {session.id: 0})  # its time has come
    await control.sweeper.sweep()
    assert await control.collection.bury(session.id) == 0  # the second look
    assert not await control.redis.exists(keys.EXPIRY, keys.GRAVES)


async def test_delete_at_a_version(control: ControlPlane) -> None:
    session = await new_session(control)
    await leases_of(control).acquire(session.id)  # version 2
    with pytest.raises(Conflict, match="version 1"):
        await control.sessions.delete(session.id, if_version=1)
    await control.sessions.delete(session.id, if_version=2)


async def test_a_tombstone_refuses_the_owners_commit(control: ControlPlane) -> None:
    session, leases = await new_session(control), leases_of(control)
    lease = await leases.acquire(session.id)
    assert lease
    owned = await leases.load(session.id)
    await control.sessions.delete(session.id)
    with pytest.raises(LeaseLost, match="deleted"):
        await leases.commit(session.id, lease, step(owned, 0, 1))
    assert await leases.renew({session.id: lease}) == {session.id}


async def test_lists_are_per_owner_newest_first_and_paged(control: ControlPlane) -> None:
    mine = [(await new_session(control, owner="me")).id for _ in range(5)]
    await new_session(control, owner="you")
    found, cursor = [], None
    while True:
        page = await control.sessions.list("me", limit=2, cursor=cursor)
        found += [item.id for item in page.items]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert sorted(found) == sorted(mine) and found == sorted(found, reverse=True)


async def test_a_record_that_can_t_be_read_costs_a_list_no_other_and_can_be_deleted(
    http: httpx.AsyncClient, control: ControlPlane, logs_of: Callable[..., list[Any]]
) -> None:
    logs = logs_of(sessions)
    good, *bad = [(await new_session(control)).id for _ in range(4)]
    lens = INTRINSICS.model_copy(update={"fx": math.inf})  # as JSON: null
    for name, spec in zip(
        bad, (NewSession(intrinsics=lens).model_dump_json(), "{", ""), strict=True
    ):
        await control.redis.hset(keys.record(name), "spec", spec)
    await control.redis.hdel(keys.record(bad[-1]), "spec")
    for _ in range(2):
        assert [one.id for one in (await control.sessions.list()).items] == [good]
    assert [one["event"] for one in logs] == ["session can't be read"] * 3
    assert {one["session"] for one in logs} == set(bad)
    listed = (await http.get("/v1/sessions?limit=2")).json()
    assert listed["sessions"] == [] and listed["next_cursor"]
    assert (await http.get("/v1/videos")).json()["data"] == []
    for name in bad:
        assert (await http.delete(f"/v1/sessions/{name}")).status_code == 204


async def test_expired_sessions_go_with_their_objects(
    control: ControlPlane, settings: Settings
) -> None:
    session, kept = await new_session(control), await new_session(control)
    await control.redis.hset(keys.record(session.id), "expires_s", time.time() - 1)
    await control.redis.zadd(keys.EXPIRY, {session.id: 0, kept.id: 0})
    await control.sweeper.sweep()
    with pytest.raises(SessionDeleted):
        await control.sessions.get(session.id)
    assert (await control.sessions.list()).items == [await control.sessions.get(kept.id)]
    assert not list(settings.data_dir.rglob(f"sessions/{session.id}"))
    assert await control.redis.keys(f"*{session.id}*") == [keys.record(session.id).encode()]
    expiry = await control.redis.zscore(keys.EXPIRY, kept.id)
    assert expiry and expiry > time.time()  # the record's own expiry, not the index's


async def test_an_idle_lifetime_may_be_shorter_than_a_creation(
    control: ControlPlane, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody comes after the first request, so nothing but the creation tells the sweeper."""
    short = settings.model_copy(update={"session_idle_s": 1.0})
    sessions = Sessions(control.redis, short, control.segments, control.requests, control.heads)
    await sessions.create(NewSession(intrinsics=INTRINSICS), IMAGE)
    async with asyncio.timeout(keys.CREATION_S - 10):
        while (await control.sessions.list()).items:
            await control.sweeper.sweep()
            await asyncio.sleep(0.05)
    monkeypatch.setattr(keys, "CREATION_S", 4)
    long = "s" + "0" * 23
    await sessions.reserve(long, "me")
    reserved_s = await control.redis.zscore(keys.EXPIRY, long)
    keeping = asyncio.create_task(sessions.keep_reserved(long))
    async with asyncio.timeout(60):
        while await control.redis.zscore(keys.EXPIRY, long) == reserved_s:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    kept_s = await control.redis.zscore(keys.EXPIRY, long)
    assert kept_s is not None and kept_s < time.time() + 2
    await end([keeping])


async def test_touch_prolongs(control: ControlPlane) -> None:
    session = await new_session(control)
    await control.redis.hset(keys.record(session.id), "expires_s", 1)
    await control.sessions.touch(session.id)
    assert (await control.sessions.get(session.id)).expires_s > time.time() + 1000


async def test_a_creation_that_died_half_way_leaves_nothing(
    control: ControlPlane, settings: Settings
) -> None:
    await control.redis.zadd(keys.EXPIRY, {"half": 0})
    await control.segments.put_upload("half", IMAGE)
    await control.sweeper.sweep()
    assert await control.redis.zcard(keys.EXPIRY) == 0
    assert not list(settings.data_dir.rglob("*.npz"))


async def test_a_creation_that_was_given_up_meanwhile_is_refused_at_its_end(
    control: ControlPlane, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a store that is out of reach for a minute."""
    put = control.segments.put_upload

    async def late(session: str, upload: Upload) -> str:
        await control.redis.zadd(keys.EXPIRY, {session: 0})
        await control.sweeper.sweep()
        if is_over:
            await control.redis.delete(keys.reservation(session))
            await control.sweeper.sweep()
        return await put(session, upload)

    is_over = False
    monkeypatch.setattr(control.segments, "put_upload", late)
    assert (await new_session(control)).state == "waiting"  # the reservation counts
    assert not await control.redis.keys("*:reservation")
    is_over = True
    with pytest.raises(Unavailable, match="more than 60 s to make"):
        await new_session(control)
    await control.sweeper.sweep()
    assert (
        len(list(settings.data_dir.rglob("*.npz"))) == await control.redis.zcard(keys.EXPIRY) == 1
    )
    assert len((await control.sessions.list()).items) == 1


async def test_a_long_creation_stays_in_its_owners_index(
    control: ControlPlane, settings: Settings
) -> None:
    few = settings.model_copy(update={"max_sessions_per_key": 1})
    sessions = Sessions(control.redis, few, control.segments, control.requests, control.heads)
    old = "s" + "0" * 23
    await sessions.reserve(old, "me")
    with pytest.raises(TooManyRequests):
        await sessions.check_room("me")
    await control.redis.delete(keys.reservation(old))
    await sessions.check_room("me")


async def test_room_is_made_once_for_one_session(control: ControlPlane) -> None:
    """A fork that is done again, by another worker, has its room already."""
    for _ in range(2):
        await control.sessions.reserve("s" + "0" * 23, "me", max_sessions=1)
    with pytest.raises(TooManyRequests, match="1 sessions at once"):
        await control.sessions.reserve("s" + "1" * 23, "me", max_sessions=1)


async def test_the_sweeper_outlives_what_nobody_foresaw(
    control: ControlPlane, settings: Settings, logs_of: Callable[..., list[Any]]
) -> None:
    session = await new_session(control)
    marker = settings.data_dir / "segments" / MARKER
    whole = marker.read_bytes()
    marker.write_bytes(b"{")
    await control.redis.set(keys.MARKER, "another")
    logs = logs_of(sweeper)
    sweeping = asyncio.create_task(control.sweep_forever())
    async with asyncio.timeout(60):
        while not any(one["event"] == "sweep failed" for one in logs):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    marker.write_bytes(whole)
    await control.redis.hset(keys.record(session.id), "expires_s", "1")
    await control.redis.zadd(keys.EXPIRY, {session.id: 1})
    await control.redis.set(keys.MARKER, json.loads(whole)["marker"])
    async with asyncio.timeout(60):
        while await control.redis.zcard(keys.EXPIRY):  # noqa: ASYNC110 the sweeper's turn
            await asyncio.sleep(0.01)
    await end([sweeping])


async def test_the_cap_on_sessions_holds(control: ControlPlane, settings: Settings) -> None:
    few = settings.model_copy(update={"max_sessions": 1})
    sessions = Sessions(control.redis, few, control.segments, control.requests, control.heads)
    await sessions.create(NewSession(intrinsics=INTRINSICS), IMAGE)
    with pytest.raises(TooManyRequests) as caught:
        await sessions.create(NewSession(intrinsics=INTRINSICS), IMAGE)
    assert caught.value.retry_after_s
    assert await control.redis.zcard(keys.EXPIRY) == 1


def test_nothing_leaves_deleted_and_everything_reaches_it() -> None:
    assert TRANSITIONS.keys() == set(SessionState)
    assert not TRANSITIONS[SessionState.DELETED]
    assert states_before(SessionState.DELETED) == set(SessionState) - {SessionState.DELETED}
    assert SessionState.FAILED not in states_before(SessionState.ACTIVE)


async def test_a_failed_session_takes_no_requests_and_no_owner(control: ControlPlane) -> None:
    session = await new_session(control)
    await control.redis.hset(keys.record(session.id), "state", "failed")
    with pytest.raises(Conflict, match="failed"):
        await control.requests.append(session.id, Generate(poses=[IDENTITY]))
