"""What a first try had its effect on and then failed is found by the next one with its key."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import ModuleType
from typing import Any

import httpx
import pytest
from pydantic import BaseModel
from redis.exceptions import ConnectionError as RedisConnectionError
from uploads_made import png

from bench.noop import start_worker
from service.auth.guard import Guard
from service.auth.principal import LOCAL
from service.control import keys
from service.control.plane import ControlPlane
from service.control.requests import RequestState
from service.errors import StoreDown, problem_document
from service.gateway import Gateway
from service.rest import branches, generations, idempotency, observations, sessions, videos
from service.rest.idempotency import Attempt, once
from service.settings import Settings
from service.store.segments import SegmentStore

KEY = {"Idempotency-Key": "again"}
IMAGE = {"files": {"image": png()}}
VIDEO = {"files": {"input_reference": png()}, "data": {"actions": "forward 0.5"}}
LOOK = {**IMAGE, "data": {"pose": '{"position": [0, 0, 0], "quaternion": [0, 0, 0, 1]}'}}
FORK, REWIND = {"params": {"wait_s": 0}}, {"params": {"wait_s": 0}, "json": {"frame": 0}}
NAMED = {"params": {"wait_s": 0}, "json": {"name": "here"}}
WALK = {"json": {"actions": [{"forward_m": 0.5}]}}
ASKED: dict[str, tuple[ModuleType, str, str, dict[str, Any]]] = {
    "session": (sessions, "session_out", "/v1/sessions", IMAGE),
    "video": (videos, "_video_out", "/v1/videos", VIDEO),
    "fork": (branches, "generation_out", "/v1/sessions/{}:fork", FORK),
    "rewind": (branches, "generation_out", "/v1/sessions/{}:rewind", REWIND),
    "snapshot": (branches, "generation_out", "/v1/sessions/{}:snapshot", NAMED),
    "observation": (observations, "generation_out", "/v1/sessions/{}/observations", LOOK),
    "generation": (generations, "generation_out", "/v1/sessions/{}/generations", WALK),
}


Fail = Callable[[object, str, Exception], None]


async def effects(control: ControlPlane) -> int:
    """Sessions, and what was asked of them."""
    found = [one.id for one in (await control.sessions.list()).items]
    return len(found) + sum([await control.redis.xlen(keys.log(one)) for one in found])


@pytest.mark.parametrize("error", [RedisConnectionError("lost"), StoreDown("away")], ids=repr)
@pytest.mark.parametrize("name", ASKED)
async def test_what_failed_after_its_effect_is_done_once(
    http: httpx.AsyncClient,
    session: str,
    control: ControlPlane,
    fails_once: Fail,
    name: str,
    error: Exception,
) -> None:
    module, last_step, path, asked = ASKED[name]
    fails_once(module, last_step, error)
    first = await http.post(path.format(session), headers=KEY, **asked)
    assert first.status_code == 503
    after_one = await effects(control)
    again = await http.post(path.format(session), headers=KEY, **asked)
    assert again.is_success, again.text
    assert "idempotent-replayed" not in again.headers
    assert await effects(control) == after_one
    replayed = await http.post(path.format(session), headers=KEY, **asked)
    assert replayed.json() == again.json() and replayed.headers["idempotent-replayed"] == "true"
    assert (await http.get(again.headers["location"])).status_code == 200


@pytest.mark.parametrize("name", ["video", "generation"])
async def test_frames_are_paid_for_once(
    http: httpx.AsyncClient,
    session: str,
    fails_once: Fail,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    paid: list[int] = []

    async def spend_frames(guard: Guard, principal: Any, num_frames: int) -> None:
        paid.append(num_frames)

    module, last_step, path, asked = ASKED[name]
    fails_once(module, last_step, StoreDown("away"))
    monkeypatch.setattr(Guard, "spend_frames", spend_frames)
    answers = [await http.post(path.format(session), headers=KEY, **asked) for _ in range(2)]
    assert [one.is_success for one in answers] == [False, True]
    assert len(paid) == 1


async def test_a_session_that_was_half_made_is_given_up(
    http: httpx.AsyncClient, control: ControlPlane, fails_once: Fail
) -> None:
    """A sweeper may be about to remove what lies under its id."""
    fails_once(SegmentStore, "put_upload", StoreDown("away"))
    assert (await http.post("/v1/sessions", headers=KEY, **IMAGE)).status_code == 503
    (half,) = [one.decode() for one in await control.redis.zrange(keys.index(""), 0, -1)]
    made = (await http.post("/v1/sessions", headers=KEY, **IMAGE)).json()["id"]
    assert made != half
    assert await control.redis.zrange(keys.index(""), 0, -1) == [made.encode()]
    assert not await control.redis.exists(keys.reservation(half))


async def test_the_id_of_a_deleted_session_is_not_used_again(
    http: httpx.AsyncClient, control: ControlPlane, fails_once: Fail
) -> None:
    fails_once(sessions, "session_out", StoreDown("away"))
    assert (await http.post("/v1/sessions", headers=KEY, **IMAGE)).status_code == 503
    (first,) = (await control.sessions.list()).items
    await control.sessions.delete(first.id)
    answers = [await http.post("/v1/sessions", headers=KEY, **IMAGE) for _ in range(2)]
    made = {one.json()["id"] for one in answers}
    assert len(made) == 1 and first.id not in made


async def test_a_fork_that_failed_is_asked_for_anew(
    http: httpx.AsyncClient,
    session: str,
    control: ControlPlane,
    fails_once: Fail,
) -> None:
    fails_once(branches, "generation_out", StoreDown("away"))
    url = f"/v1/sessions/{session}:fork"
    assert (await http.post(url, headers=KEY, **FORK)).status_code == 503
    (asked,) = [one for one in await control.requests.list(session) if one.kind == "fork"]
    failed = {"state": RequestState.FAILED, "error": problem_document(StoreDown("away"))}
    value = asked.model_copy(update=failed).model_dump_json()
    await control.redis.hset(keys.requests(session), asked.id, value)
    again = await http.post(url, headers=KEY, **FORK)
    assert again.status_code == 202 and again.json()["id"] != asked.id


async def test_a_fork_outlives_its_source_between_two_tries(
    http: httpx.AsyncClient, session: str, settings: Settings, fails_once: Fail
) -> None:
    worker = start_worker(settings)
    try:
        frames = f"/v1/sessions/{session}/frames?wait_s=20"
        async with asyncio.timeout(60):
            while not (await http.get(frames)).json()["frames"]:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        fails_once(branches, "generation_out", StoreDown("away"))
        url = f"/v1/sessions/{session}:fork"
        assert (await http.post(url + "?wait_s=20", headers=KEY)).status_code == 503
    finally:
        worker.terminate()
        worker.join()
    assert (await http.delete(f"/v1/sessions/{session}")).status_code == 204
    again, replayed = [await http.post(url + "?wait_s=20", headers=KEY) for _ in range(2)]
    assert again.status_code == 200, again.text
    assert replayed.json() == again.json() and replayed.headers["idempotent-replayed"] == "true"
    said, listed = again.json(), (await http.get("/v1/sessions")).json()["sessions"]
    assert said["state"] == "done" and said["kind"] == "fork"
    assert said["result"]["session"] == listed[0]["id"]
    assert said["result"]["num_frames"] == listed[0]["num_frames"]
    assert len(listed) == 1 and listed[0]["origin"] == f"fork:{session}"
    answer = await http.post(url, headers={"Idempotency-Key": "another"})
    assert answer.status_code == 410


class Made(BaseModel):
    seed: str


async def test_a_try_that_was_cancelled_is_followed_by_one_with_its_ids(gateway: Gateway) -> None:
    begun, seeds = asyncio.Event(), []

    async def cancelled(attempt: Attempt) -> tuple[Made, dict[str, str]]:
        seeds.append(attempt.seed)
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    async def work(attempt: Attempt) -> tuple[Made, dict[str, str]]:
        assert not attempt.is_first
        return Made(seed=attempt.seed), {}

    first = asyncio.create_task(once(gateway, LOCAL, "key", "it", 201, cancelled))
    await asyncio.wait_for(begun.wait(), 60)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    again = await once(gateway, LOCAL, "key", "it", 201, work)
    assert Made.model_validate_json(bytes(again.body)).seed == seeds[0]


async def test_so_is_one_whose_process_died(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idempotency, "CLAIMED_S", 1)
    first = Attempt(gateway, "", "key", "it")
    assert await first.begin() == ""
    async with asyncio.timeout(60):
        while await (second := Attempt(gateway, "", "key", "it")).begin():  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    resent = Attempt(gateway, "", "key", "it", claim=second.claim)  # by the client of Redis
    assert await resent.begin() == ""
    assert first.seed == second.seed == resent.seed
    assert [one.is_first for one in (first, second, resent)] == [True, False, False]
    assert "seed" in await Attempt(gateway, "", "key", "another").begin()  # refused
    await first.settle("", 1)
    assert await gateway.control.redis.exists(keys.idempotency("", "key"))  # another's by now
