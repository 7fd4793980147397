"""REST against the real control plane and a worker without a model; and a table of bad requests."""

from __future__ import annotations

import asyncio
import io
import json
import re
import time
from contextlib import nullcontext
from typing import Any

import av
import httpx
import numpy as np
import pytest
from fake_worker import FakeWorker, working
from pydantic import BaseModel
from uploads_made import npy, png

from service.auth.principal import LOCAL
from service.control import keys
from service.control.plane import ControlPlane
from service.errors import Conflict, InvalidRequest, StoreDown
from service.gateway import Gateway
from service.poses import flat
from service.rest import idempotency
from service.rest.idempotency import Attempt, once
from service.settings import Settings
from service.store.collection import Collection, Marks
from service.video import decode_frame

IDENTITY = flat(np.eye(4))
SCALED = flat(np.diag([2.0, 2.0, 2.0, 1.0]))


async def finished(http: httpx.AsyncClient, session: str, generation: str) -> dict[str, Any]:
    for _ in range(6000):
        progress = (await http.get(f"/v1/sessions/{session}/generations/{generation}")).json()
        if progress["state"] in ("done", "failed", "cancelled"):
            return dict(progress)
        await asyncio.sleep(0.01)
    raise AssertionError(f"not finished: {progress}")


async def walk(http: httpx.AsyncClient, session: str, **path: Any) -> dict[str, Any]:
    answer = await http.post(f"/v1/sessions/{session}/generations", json=path)
    assert answer.status_code == 202, answer.text
    return dict(answer.json())


async def test_create_says_what_became_of_the_image(http: httpx.AsyncClient) -> None:
    answer = await http.post(
        "/v1/sessions",
        files={"image": png(200, 80), "depth": npy(np.full((40, 100), 3.0, np.float32))},
        data={"fov_deg": "90", "seed": "5", "memory": "null"},
    )
    created = answer.json()
    assert answer.status_code == 201
    assert answer.headers["location"] == f"/v1/sessions/{created['id']}"
    assert created["upload"] == {
        "width": 200,
        "height": 80,
        "crop": [20, 0, 160, 80],
        "lens_source": "fov_deg",
        "has_depth": True,
    }
    assert (created["state"], created["seed"], created["memory"]) == ("waiting", 5, "null")
    assert (created["width"], created["height"], created["num_frames"]) == (64, 32, 0)
    assert created["intrinsics"]["fx"] == pytest.approx(100 * 64 / 160)


async def test_the_worker_gets_the_frame_sized_upload(
    http: httpx.AsyncClient, control: ControlPlane
) -> None:
    files = {"image": png(128, 64), "depth": npy(np.full((64, 128), 3.0, np.float32))}
    session = (await http.post("/v1/sessions", files=files)).json()["id"]
    entry = (await control.redis.xrange(f"mirage:{{{session}}}:log"))[0][1]
    upload = await control.segments.get_upload(session, json.loads(entry[b"body"])["blob"])
    assert upload.image.shape == (32, 64, 3)
    assert upload.depth is not None and np.unique(upload.depth) == [3.0]


async def test_a_sample_is_opened_by_name(http: httpx.AsyncClient) -> None:
    listed = (await http.get("/v1/samples")).json()["samples"]
    assert listed == [
        {
            "name": "attic",
            "title": "Attic",
            "description": "dusty",
            "image": "/v1/samples/attic.png",
            "fov_deg": 80,
            "has_depth": True,
        }
    ]
    picture = await http.get(listed[0]["image"])
    assert picture.headers["content-type"] == "image/png"
    created = await http.post("/v1/sessions", data={"sample": "attic"})
    assert created.status_code == 201
    assert created.json()["upload"]["has_depth"] is True


async def test_a_path_becomes_frames_progress_and_a_video(
    http: httpx.AsyncClient, session: str, settings: Settings
) -> None:
    async with working(FakeWorker(settings)):
        path = await walk(http, session, actions=[{"forward_m": 0.5}, {"yaw_deg": 8}])
        assert (path["state"], path["total"]) == ("queued", 7)
        progress = await finished(http, session, path["id"])
    assert (progress["state"], progress["done"]) == ("done", 7)
    assert (progress["first_frame"], progress["last_frame"]) == (1, 7)

    frames: list[dict[str, Any]] = []
    after = -1
    while page := (await http.get(f"/v1/sessions/{session}/frames?after={after}&limit=3")).json():
        frames += page["frames"]
        after = page["next_after"]
        if not page["frames"]:
            break
    assert [frame["frame"] for frame in frames] == list(range(8))
    assert np.reshape(frames[5]["matrix"], (4, 4))[2, 3] == pytest.approx(0.5)
    assert {frame["request_id"] for frame in frames[1:]} == {path["id"]}

    image = await http.get(frames[4]["image"])
    assert image.headers["content-type"] == "image/webp"
    assert decode_frame(image.content)[0, 0, 0] == 4
    known = {"If-None-Match": image.headers["etag"]}
    assert (await http.get(frames[4]["image"], headers=known)).status_code == 304
    assert (await http.get(frames[5]["image"], headers=known)).status_code == 200

    video = await http.get(f"/v1/sessions/{session}/generations/{path['id']}/video.mp4")
    assert video.headers["content-type"] == "video/mp4"
    with av.open(io.BytesIO(video.content)) as container:
        assert len(list(container.decode(video=0))) == 7

    memory = (await http.get(f"/v1/sessions/{session}/memory")).json()
    assert memory["num_points"] == 800
    kinds = [one["kind"] for one in await generations(http, session)]
    assert kinds == ["init", "generate"]


async def generations(http: httpx.AsyncClient, session: str) -> list[dict[str, Any]]:
    answer = await http.get(f"/v1/sessions/{session}/generations")
    return list(answer.json()["generations"])


async def test_actions_continue_from_the_last_planned_pose(
    http: httpx.AsyncClient, session: str, settings: Settings
) -> None:
    await walk(http, session, actions=[{"forward_m": 0.3}])
    queued = await walk(http, session, actions=[{"forward_m": 0.2}])  # the first still waits
    async with working(FakeWorker(settings)):
        await finished(http, session, queued["id"])
        later = await walk(http, session, actions=[{"forward_m": 0.1}])
        await finished(http, session, later["id"])
    listed = (await http.get(f"/v1/sessions/{session}/frames?after=0")).json()["frames"]
    depths = [np.reshape(frame["matrix"], (4, 4))[2, 3] for frame in listed]
    assert depths == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])


async def test_a_long_poll_waits_for_the_next_frame(
    http: httpx.AsyncClient, session: str, settings: Settings
) -> None:
    assert (await http.get(f"/v1/sessions/{session}/frames")).json()["frames"] == []
    waiting = asyncio.create_task(http.get(f"/v1/sessions/{session}/frames?wait_s=20"))
    await asyncio.sleep(0.1)
    async with working(FakeWorker(settings)):
        answer = await asyncio.wait_for(waiting, 60)
    assert [frame["frame"] for frame in answer.json()["frames"]] == [0]


async def test_events_tell_progress_and_frames_in_order(
    http: httpx.AsyncClient, session: str, settings: Settings
) -> None:
    path = await walk(http, session, poses=[{"matrix": IDENTITY}] * 5)
    url = f"/v1/sessions/{session}/generations/{path['id']}/events"
    async with working(FakeWorker(settings, step_s=0.01)):
        lines = (await http.get(url)).text.splitlines()
    names = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    data = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    events = list(zip(names, data, strict=True))
    assert [one["frame"] for name, one in events if name == "frame"] == [1, 2, 3, 4, 5]
    assert events[0][1]["state"] == "queued"
    assert events[-1][0] == "progress" and events[-1][1]["state"] == "done"
    late = (await http.get(url)).text  # who comes late has all frames, too, and the end after them
    assert re.findall("^id: (.*)", late, re.M) == ["1", "2", "3", "4", "5"]
    assert re.findall("^event: (.*)", late, re.M) == ["frame"] * 5 + ["progress"]
    missed = (await http.get(url, headers={"Last-Event-ID": "3"})).text
    assert re.findall("^id: (.*)", missed, re.M) == ["4", "5"]


async def test_events_of_what_waits_behind_a_rewind_begin_where_the_world_is_then(
    http: httpx.AsyncClient, session: str, settings: Settings
) -> None:
    first = await walk(http, session, poses=[{"matrix": IDENTITY}] * 5)
    async with working(FakeWorker(settings)):
        await finished(http, session, first["id"])
    back = await http.post(f"/v1/sessions/{session}:rewind", json={"frame": 2})
    assert back.status_code == 202, back.text
    path = await walk(http, session, poses=[{"matrix": IDENTITY}] * 6)
    url = f"/v1/sessions/{session}/generations/{path['id']}/events"
    following = asyncio.create_task(http.get(url))
    async with asyncio.timeout(60):
        while "mirage_streams_active 1.0" not in (await http.get("/metrics")).text:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    async with working(FakeWorker(settings)):
        text = (await asyncio.wait_for(following, 60)).text
    assert re.findall("^id: (.*)", text, re.M) == ["3", "4", "5", "6", "7", "8"]


async def test_who_follows_events_keeps_the_world_alive(
    http: httpx.AsyncClient, session: str, control: ControlPlane
) -> None:
    path = await walk(http, session, poses=[{"matrix": IDENTITY}])  # there is no worker
    record = keys.record(session)
    await control.redis.hset(record, "expires_s", 1)
    url = f"/v1/sessions/{session}/generations/{path['id']}/events"
    following = asyncio.create_task(http.get(url))
    async with asyncio.timeout(60):
        while float(await control.redis.hget(record, "expires_s")) < time.time() + 1000:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await http.delete(f"/v1/sessions/{session}")
    assert "session-deleted" in (await asyncio.wait_for(following, 60)).text


async def test_cancel_keeps_the_frames_that_exist(
    http: httpx.AsyncClient, session: str, settings: Settings
) -> None:
    path = await walk(http, session, poses=[{"matrix": IDENTITY}] * 200)
    url = f"/v1/sessions/{session}/generations/{path['id']}"
    assert (await http.get(f"{url}/video.mp4")).status_code == 409
    async with working(FakeWorker(settings, step_s=0.005)):
        for after in (0, 1, 2):
            await http.get(f"/v1/sessions/{session}/frames?after={after}&wait_s=5")
        cancelled = await http.post(f"{url}:cancel")
        assert cancelled.json()["cancel_requested"] is True
        progress = await finished(http, session, path["id"])
    assert progress["state"] == "cancelled" and progress["cancel_requested"]
    assert 3 <= progress["done"] < 200
    with av.open(io.BytesIO((await http.get(f"{url}/video.mp4")).content)) as container:
        assert len(list(container.decode(video=0))) == progress["done"]


async def test_a_failed_generation_says_why(
    http: httpx.AsyncClient, session: str, settings: Settings
) -> None:
    far = flat(np.eye(4))
    far[3] = 9000.0
    async with working(FakeWorker(settings)):
        path = await walk(http, session, poses=[{"matrix": far}])
        progress = await finished(http, session, path["id"])
    assert progress["state"] == "failed"
    assert progress["error"]["detail"] == "too far away"
    video = await http.get(f"/v1/sessions/{session}/generations/{path['id']}/video.mp4")
    assert video.status_code == 409 and "made no frame" in video.json()["detail"]


async def test_the_same_key_is_done_once(http: httpx.AsyncClient, session: str) -> None:
    key, files = {"Idempotency-Key": "a"}, {"image": png(seed=3)}
    first = await http.post("/v1/sessions", files=files, headers=key)
    again = await http.post("/v1/sessions", files=files, headers=key)
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json() == again.json()
    assert again.headers["idempotent-replayed"] == "true"
    assert again.headers["location"] == first.headers["location"]
    other = await http.post("/v1/sessions", files={"image": png(seed=4)}, headers=key)
    assert other.status_code == 422
    assert other.json()["errors"][0]["field"] == "Idempotency-Key"
    assert len((await http.get("/v1/sessions")).json()["sessions"]) == 2  # with the fixture's

    url = f"/v1/sessions/{session}/generations"
    body, key = {"poses": [{"matrix": IDENTITY}]}, {"Idempotency-Key": "b"}
    answers = [(await http.post(url, json=body, headers=key)).json()["id"] for _ in range(2)]
    assert answers[0] == answers[1]
    assert len(await generations(http, session)) == 2


async def test_a_request_that_failed_may_be_tried_again_with_its_key(
    http: httpx.AsyncClient,
) -> None:
    key = {"Idempotency-Key": "c"}
    bad = await http.post("/v1/sessions", files={"image": b"nothing"}, headers=key)
    good = await http.post("/v1/sessions", files={"image": png()}, headers=key)
    assert (bad.status_code, good.status_code) == (422, 201)


async def test_two_at_once_with_one_key_make_one_session(http: httpx.AsyncClient) -> None:
    key, files = {"Idempotency-Key": "d"}, {"image": png()}
    posts = [http.post("/v1/sessions", files=files, headers=key) for _ in range(4)]
    statuses = sorted(answer.status_code for answer in await asyncio.gather(*posts))
    assert set(statuses) <= {201, 409} and 201 in statuses
    assert len((await http.get("/v1/sessions")).json()["sessions"]) == 1


class Made(BaseModel):
    number: int = 1


async def test_a_key_stays_claimed_however_long_the_work_takes(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idempotency, "CLAIMED_S", 4)

    async def retried(attempt: Attempt) -> tuple[Made, dict[str, str]]:
        raise AssertionError("done twice")

    async def work(attempt: Attempt) -> tuple[Made, dict[str, str]]:
        started_s = time.monotonic()
        while time.monotonic() - started_s < 1.5 * idempotency.CLAIMED_S:
            with pytest.raises(Conflict, match="still runs"):
                await once(gateway, LOCAL, "long", "it", 201, retried)
            await asyncio.sleep(0.1)
        return Made(), {}

    assert (await once(gateway, LOCAL, "long", "it", 201, work)).status_code == 201
    again = await once(gateway, LOCAL, "long", "it", 201, retried)
    assert again.headers["idempotent-replayed"] == "true"


@pytest.mark.parametrize("fails", [True, False])
async def test_a_claim_that_is_anothers_by_now_is_left_alone(gateway: Gateway, fails: bool) -> None:
    """As after a time without Redis."""
    redis, name = gateway.control.redis, keys.idempotency(LOCAL.owner, "lost")

    async def work(attempt: Attempt) -> tuple[Made, dict[str, str]]:
        await redis.set(name, '{"claim": "another\'s"}')
        if fails:
            raise InvalidRequest("no")
        return Made(), {}

    with pytest.raises(InvalidRequest) if fails else nullcontext():
        await once(gateway, LOCAL, "lost", "it", 201, work)
    assert json.loads(await redis.get(name)) == {"claim": "another's"}


async def test_pages_of_sessions(http: httpx.AsyncClient) -> None:
    made = []
    for seed in range(5):
        answer = await http.post("/v1/sessions", files={"image": png()}, data={"seed": str(seed)})
        made.append(answer.json()["seed"])
        await asyncio.sleep(0.002)  # ids sort by the millisecond
    seen, cursor = [], ""
    while True:
        page = (await http.get(f"/v1/sessions?limit=2{cursor}")).json()
        seen += [one["seed"] for one in page["sessions"]]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert seen == made[::-1]


async def test_versions(http: httpx.AsyncClient, session: str, settings: Settings) -> None:
    url = f"/v1/sessions/{session}"
    old = (await http.get(url)).headers["etag"]
    assert (await http.get(url, headers={"If-None-Match": old})).status_code == 304
    async with working(FakeWorker(settings)):
        assert (await http.get(f"{url}/frames?wait_s=5")).json()["frames"]
    refused = await http.delete(url, headers={"If-Match": old})
    assert refused.status_code == 412
    assert refused.headers["content-type"] == "application/problem+json"
    new = (await http.get(url)).headers["etag"]
    assert (await http.delete(url, headers={"If-Match": new})).status_code == 204
    gone = await http.get(url)
    assert gone.status_code == 410 and gone.json()["type"].endswith("session-deleted")


async def test_work_for_another_version_is_refused(
    http: httpx.AsyncClient, session: str, settings: Settings
) -> None:
    url = f"/v1/sessions/{session}"
    old = {"If-Match": (await http.get(url)).headers["etag"]}
    async with working(FakeWorker(settings)):
        assert (await http.get(f"{url}/frames?wait_s=5")).json()["frames"]
    path = {"poses": [{"matrix": IDENTITY}]}
    seen = {"image": png()}, {"pose": json.dumps({"matrix": IDENTITY})}
    for ask in (
        lambda headers: http.post(f"{url}/generations", json=path, headers=headers),
        lambda headers: http.post(
            f"{url}/observations", files=seen[0], data=seen[1], headers=headers
        ),
    ):
        before = (await http.get(url)).headers["etag"]
        refused = await ask(old)
        assert refused.status_code == 412, refused.text
        assert refused.json()["type"].endswith("version-conflict")
        malformed = await ask({"If-Match": "W/x"})
        assert malformed.json()["errors"][0]["field"] == "If-Match"
        assert (await http.get(url)).headers["etag"] == before
        assert (await ask({"If-Match": before})).status_code == 202
    kinds = [one["kind"] for one in (await http.get(f"{url}/generations")).json()["generations"]]
    assert kinds == ["init", "generate", "observe"]


async def test_a_fork_needs_no_body(http: httpx.AsyncClient, session: str) -> None:
    answer = await http.post(f"/v1/sessions/{session}:fork?wait_s=0")
    assert answer.status_code == 202 and answer.json()["kind"] == "fork"


async def test_keep_alive_moves_the_expiry(http: httpx.AsyncClient, session: str) -> None:
    url = f"/v1/sessions/{session}"
    before = (await http.get(url)).json()["expires_at"]
    assert (await http.post(f"{url}:keep-alive")).status_code == 204
    assert (await http.get(url)).json()["expires_at"] > before


async def test_a_full_backlog_is_a_429_with_retry_after(
    http: httpx.AsyncClient, session: str, settings: Settings
) -> None:
    url, body = f"/v1/sessions/{session}/generations", {"poses": [{"matrix": IDENTITY}]}
    for _ in range(settings.max_backlog - 1):  # the first image waits too
        assert (await http.post(url, json=body)).status_code == 202
    refused = await http.post(url, json=body)
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1


async def test_a_world_is_still_there_when_its_deletion_is_refused(
    http: httpx.AsyncClient, session: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def out_of_reach(*_: object) -> Marks:
        raise StoreDown("the store is away")

    with monkeypatch.context() as patched:
        patched.setattr(Collection, "forks", out_of_reach)
        assert (await http.delete(f"/v1/sessions/{session}")).status_code == 503
    assert (await http.get(f"/v1/sessions/{session}")).status_code == 200
    assert (await http.delete(f"/v1/sessions/{session}")).status_code == 204


# what to create a session with, the field that is named, a part of what is allowed
BAD_FORMS: dict[str, tuple[dict[str, Any], str, str]] = {
    "nothing": ({}, "body", "either `image` or `sample`"),
    "not an image": ({"files": {"image": b"hello"}}, "image", "PNG"),
    "truncated": ({"files": {"image": png()[:99]}}, "image", "complete"),
    "unknown sample": ({"data": {"sample": "../secret"}}, "sample", "attic"),
    "both": ({"files": {"image": png()}, "data": {"sample": "attic"}}, "body", "either"),
    "unknown field": ({"files": {"image": png()}, "data": {"colour": "red"}}, "colour", "no such"),
    "seed given twice": (
        {"files": {"image": png()}, "data": {"seed": ["1", "2"]}},
        "seed",
        "one value",
    ),
    "image given twice": (
        {"files": [("image", ("a.png", png())), ("image", ("b.png", png()))]},
        "image",
        "one value",
    ),
    "image as text": ({"data": {"image": "cat.jpg"}}, "image", "a file"),
    "depth of another size": (
        {"files": {"image": png(), "depth": npy(np.ones((64, 64), np.float32))}},
        "depth",
        "96 x 64",
    ),
    "depth of too few pixels": (
        {"files": {"image": png(64, 64), "depth": npy(np.ones((5, 5), np.float32))}},
        "depth",
        "8 x 8 pixels",
    ),
    "depth in millimetres": (
        {"files": {"image": png(), "depth": npy(np.full((64, 96), 1800.0, np.float32))}},
        "depth",
        "millimetres",
    ),
    "depth without an image": (
        {"files": {"depth": npy(np.ones((64, 96), np.float32))}, "data": {"sample": "attic"}},
        "body",
        "brings its own depth",
    ),
    "field of view": (
        {"files": {"image": png()}, "data": {"fov_deg": "200"}},
        "fov_deg",
        "at most 170",
    ),
    "field of view as text": (
        {"files": {"image": png()}, "data": {"fov_deg": "wide"}},
        "fov_deg",
        "number",
    ),
    "half a lens": (
        {"files": {"image": png()}, "data": {"fx": "50", "fy": "50"}},
        "body",
        "all of fx, fy, cx, cy",
    ),
    "lens of another resolution": (
        {
            "files": {"image": png()},
            "data": {"fx": "900", "fy": "900", "cx": "960", "cy": "540"},
        },
        "fx",
        "pixels of the uploaded image",
    ),
    "lens that is no number": (
        {"files": {"image": png()}, "data": {"fx": "nan", "fy": "50", "cx": "48", "cy": "32"}},
        "fx",
        "above 0",
    ),
    "negative seed": ({"files": {"image": png()}, "data": {"seed": "-1"}}, "seed", "at least 0"),
    "seed too large": (
        {"files": {"image": png()}, "data": {"seed": str(2**63)}},
        "seed",
        "below 9007199254740992",
    ),
    "unknown memory": ({"files": {"image": png()}, "data": {"memory": "clay"}}, "memory", "latent"),
    "a key with spaces": (
        {"files": {"image": png()}, "headers": {"Idempotency-Key": "a b"}},
        "Idempotency-Key",
        "visible",
    ),
}


@pytest.mark.parametrize("name", BAD_FORMS)
async def test_a_bad_form_is_explained_and_nothing_remains(
    http: httpx.AsyncClient, control: ControlPlane, settings: Settings, name: str
) -> None:
    request, field, allowed = BAD_FORMS[name]
    answer = await http.post("/v1/sessions", **request)
    check_problem(answer, 422, field, allowed)
    assert set(await control.redis.keys("*")) <= {keys.MARKER.encode()}
    left = {path.name for path in (settings.data_dir / "segments").rglob("*.*")}
    assert left <= {"marker.json"}


GENERATIONS = "/v1/sessions/{id}/generations"
# method, path, body, status, the field that is named, a part of what is allowed
BAD_REQUESTS: dict[str, tuple[str, str, Any, int, str, str]] = {
    "no body": ("POST", GENERATIONS, None, 422, "body", "required"),
    "a list": ("POST", GENERATIONS, [1], 422, "body", "a JSON object"),
    "neither": ("POST", GENERATIONS, {}, 422, "body", "either"),
    "scaled": (
        "POST",
        GENERATIONS,
        {"poses": [{"matrix": SCALED}]},
        422,
        "poses[0].matrix",
        "|R^T",
    ),
    "too long": (
        "POST",
        GENERATIONS,
        {"poses": [{"matrix": IDENTITY}] * 1025},
        422,
        "poses",
        "1024",
    ),
    "actions too long": (
        "POST",
        GENERATIONS,
        {"actions": [{"forward_m": 500}]},
        422,
        "actions",
        "1024",
    ),
    "unknown axes": (
        "POST",
        GENERATIONS,
        {"poses": [{"matrix": IDENTITY}], "axes": "maya"},
        422,
        "axes",
        "opengl",
    ),
    "limit": ("GET", "/v1/sessions?limit=0", None, 422, "limit", "at least 1"),
    "cursor": ("GET", "/v1/sessions?cursor=%00", None, 422, "cursor", "next_cursor"),
    "cursor never given": ("GET", "/v1/sessions?cursor=foo", None, 422, "cursor", "next_cursor"),
    "query": ("GET", "/v1/sessions/{id}/frames?aftr=0", None, 422, "aftr", "one of after, wait_s"),
    "no query": ("GET", "/v1/sessions/{id}?x=1", None, 422, "x", "no query"),
    "query given twice": (
        "GET",
        "/v1/sessions/{id}/frames?after=1&after=5",
        None,
        422,
        "after",
        "one value",
    ),
    "snapshot name": (
        "POST",
        "/v1/sessions/{id}:snapshot",
        {"name": "!"},
        422,
        "name",
        "letters, digits, spaces and _ . : -",
    ),
    "list of poses": (
        "POST",
        GENERATIONS,
        {"poses": [IDENTITY]},
        422,
        "poses[0]",
        '{"matrix": [16 numbers, row by row]}',
    ),
    "three rows": (
        "POST",
        GENERATIONS,
        {"poses": [{"matrix": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]}]},
        422,
        "poses[0].matrix",
        "16 numbers, row by row, or 4 rows of 4",
    ),
    "after": ("GET", "/v1/sessions/{id}/frames?after=-2", None, 422, "after", "at least -1"),
    "wait": ("GET", "/v1/sessions/{id}/frames?wait_s=1e9", None, 422, "wait_s", "at most 20"),
    "wait nan": (
        "GET",
        "/v1/sessions/{id}/frames?wait_s=nan",
        None,
        422,
        "wait_s",
        "a number of at",
    ),
    "frame": ("GET", "/v1/sessions/{id}/frames/first", None, 422, "frame", "whole number"),
    "frame not made": ("GET", "/v1/sessions/{id}/frames/7", None, 404, "", ""),
    "unknown generation": ("GET", GENERATIONS + "/r_1", None, 404, "", ""),
    "video of nothing": ("GET", GENERATIONS + "/r_1/video.mp4", None, 404, "", ""),
    "events of nothing": ("GET", GENERATIONS + "/r_1/events", None, 404, "", ""),
    "cancel nothing": ("POST", GENERATIONS + "/r_1:cancel", None, 404, "", ""),
    "frame rate": (
        "GET",
        GENERATIONS + "/r_1/video.mp4?frames_per_s=0",
        None,
        422,
        "frames_per_s",
        "",
    ),
    "unknown session": ("GET", "/v1/sessions/s1", None, 404, "", ""),
    "generations of no session": ("GET", "/v1/sessions/s1/generations", None, 404, "", ""),
    "walk in no session": (
        "POST",
        "/v1/sessions/s1/generations",
        {"actions": [{"yaw_deg": 1}]},
        404,
        "",
        "",
    ),
    "frames of no session": ("GET", "/v1/sessions/s1/frames?wait_s=5", None, 404, "", ""),
    "memory of no session": ("GET", "/v1/sessions/s1/memory", None, 404, "", ""),
    "delete no session": ("DELETE", "/v1/sessions/s1", None, 404, "", ""),
    "unknown sample": ("GET", "/v1/samples/cellar.png", None, 404, "", ""),
    "sample outside": ("GET", "/v1/samples/..%2Fattic.png", None, 404, "", ""),
    "unknown path": ("GET", "/v2", None, 404, "", ""),
    "method": ("PUT", "/v1/sessions", None, 405, "", ""),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
async def test_a_bad_request_is_explained_and_changes_nothing(
    http: httpx.AsyncClient, session: str, name: str
) -> None:
    before = (await http.get(f"/v1/sessions/{session}")).json()
    method, path, body, status, field, allowed = BAD_REQUESTS[name]
    answer = await http.request(method, path.replace("{id}", session), json=body)
    check_problem(answer, status, field, allowed)
    assert len(await generations(http, session)) == 1
    assert (await http.get(f"/v1/sessions/{session}")).json() == before


async def test_numbers_that_json_does_not_know_are_explained(
    http: httpx.AsyncClient, session: str
) -> None:
    """Python's json writes NaN; so do its users."""
    body = json.dumps({"poses": [{"matrix": [float("nan"), *IDENTITY[1:]]}]})
    url, headers = f"/v1/sessions/{session}/generations", {"Content-Type": "application/json"}
    answer = await http.post(url, content=body, headers=headers)
    check_problem(answer, 422, "poses[0].matrix", "finite")
    broken = await http.post(url, content='{"poses": [', headers=headers)
    check_problem(broken, 422, "body", "valid JSON")
    assert "at character 11" in broken.json()["errors"][0]["seen"]
    other = await http.delete(f"/v1/sessions/{session}", headers={"If-Match": "three"})
    check_problem(other, 422, "If-Match", "ETag")


async def test_a_body_of_another_type_is_told_by_name(
    http: httpx.AsyncClient, session: str
) -> None:
    generations = f"/v1/sessions/{session}/generations"
    check_problem(await http.post(generations, data={"a": "b"}), 422, "Content-Type", "json")
    answer = await http.post("/v1/sessions", json={"image": "x"})
    check_problem(answer, 422, "Content-Type", "multipart/form-data")
    check_problem(await http.post("/v1/sessions", data={"image": "x"}), 422, "image", "a file")
    answer = await http.post("/v1/sessions", files={"image": png()}, data={"sample": "attic"})
    check_problem(answer, 422, "body", "either `image` or `sample`")
    assert answer.json()["errors"][0]["seen"] == "image, sample"
    bare = await http.post(generations, content=b'{"actions": [{"yaw_deg": 1}]}')
    check_problem(bare, 422, "Content-Type", "application/json")
    assert "without the header Content-Type" in bare.json()["detail"]
    bare = await http.post("/v1/sessions", content=b"image=x")
    check_problem(bare, 422, "Content-Type", "multipart/form-data")
    bare = await http.post("/v1/sessions:import", content=b"x")
    check_problem(bare, 422, "Content-Type", "application/x-tar")
    assert bare.json()["errors"][0]["seen"] == "nothing"


async def test_a_file_that_nobody_asked_for_is_told_by_name(http: httpx.AsyncClient) -> None:
    files = {"image": png(), "picture": ("p.jpg", png())}
    answer = await http.post("/v1/sessions", files=files)
    check_problem(answer, 422, "picture", "no such field")
    assert answer.json()["errors"][0]["seen"] == "the file p.jpg"


async def test_what_is_given_twice_is_told_with_its_values(
    http: httpx.AsyncClient, session: str
) -> None:
    answer = (await http.get(f"/v1/sessions/{session}/frames?limit=1&after=1&after=5")).json()
    assert "given twice: after" in answer["detail"]
    assert answer["errors"][0]["seen"] == '2 values: ["1", "5"]'
    files = [("image", ("a.png", png())), ("image", ("b.png", png()))]
    answer = (await http.post("/v1/sessions", files=files)).json()
    assert answer["errors"][0]["seen"] == '2 values: ["the file a.png", "the file b.png"]'


async def test_detail_alone_says_what_to_do(http: httpx.AsyncClient, session: str) -> None:
    answer = await http.post(f"/v1/sessions/{session}/generations", json={"axes": "maya"})
    detail = answer.json()["detail"]
    assert "axes: opencv, opengl, unity, unreal or ros; got maya." in detail


async def test_half_a_character_is_refused_like_any_other(
    http: httpx.AsyncClient, session: str
) -> None:
    url, headers = f"/v1/sessions/{session}/generations", {"Content-Type": "application/json"}
    answer = await http.post(url, content='{"axes": "\\ud800"}', headers=headers)
    check_problem(answer, 422, "axes", "text of whole characters")


@pytest.mark.parametrize("path", ["/docs", "/v1/sessions", "/v1/sessions/{id}", "/livez"])
async def test_head_is_get_without_its_body(
    http: httpx.AsyncClient, session: str, path: str
) -> None:
    url = path.replace("{id}", session)
    whole, head = await http.get(url), await http.head(url)
    assert (head.status_code, head.content) == (200, b"")
    changing = {"x-request-id", "date"}
    assert {name: head.headers[name] for name in head.headers if name not in changing} == {
        name: whole.headers[name] for name in whole.headers if name not in changing
    }
    refused = await http.head("/v1/sessions/s1")
    assert refused.status_code == 404 and not refused.content
    assert "HEAD" in (await http.put(url)).headers["allow"]
    assert (await http.head("/v1/forks")).status_code == 405


async def test_head_does_not_wait_for_a_stream_to_end(
    http: httpx.AsyncClient, session: str
) -> None:
    path = await walk(http, session, poses=[{"matrix": IDENTITY}])  # there is no worker
    url = f"/v1/sessions/{session}/generations/{path['id']}/events"
    head = await asyncio.wait_for(http.head(url), 60)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"].startswith("text/event-stream")
    text = (await http.get("/metrics")).text
    assert 'method="HEAD",route="/v1/sessions/{session_id}/generations/{generation_id}/ev' in text
    assert "mirage_streams_active 0.0" in text


async def test_bodies_are_bounded_by_what_arrives(http: httpx.AsyncClient, session: str) -> None:
    async def endless() -> Any:
        for _ in range(100):
            yield b" " * 100_000

    url, headers = f"/v1/sessions/{session}/generations", {"Content-Type": "application/json"}
    answer = await http.post(url, content=endless(), headers=headers)
    check_problem(answer, 413, "", "")
    large = b"\x89PNG\r\n\x1a\n" + b"\0" * (20 << 20)
    answer = await http.post("/v1/sessions", files={"image": large})
    check_problem(answer, 422, "image", "20,971,520 bytes")
    answer = await http.post("/v1/sessions", files={"image": large, "depth": 3 * large})
    check_problem(answer, 413, "", "")
    assert answer.json()["documentation"] == "/errors#too-large"


@pytest.mark.parametrize("claimed", ["application/x-tar", "multipart/form-data", "text/plain", ""])
async def test_the_endpoint_decides_how_much_is_read_not_the_media_type_claimed(
    http: httpx.AsyncClient, session: str, claimed: str
) -> None:
    url = f"/v1/sessions/{session}/generations"
    headers = {"Content-Type": claimed} if claimed else {}
    answer = await http.post(url, content=b" " * 3_000_000, headers=headers)
    check_problem(answer, 413, "", "")


@pytest.mark.parametrize(
    ("start", "item", "end"),
    [
        ('{"poses": [', "0", "]}"),
        ('{"poses": [{"matrix": [', '"a"', "]}]}"),
        ('{"actions": [', '{"x": 1}', "]}"),
        ("{", '"k%d": 0', "}"),
    ],
)
async def test_the_answer_to_much_nonsense_is_short(
    http: httpx.AsyncClient, session: str, start: str, item: str, end: str
) -> None:
    items = [item % number if "%" in item else item for number in range(50_000)]
    url, headers = f"/v1/sessions/{session}/generations", {"Content-Type": "application/json"}
    answer = await http.post(url, content=start + ",".join(items) + end, headers=headers)
    check_problem(answer, 422, "", "")
    assert 1 <= len(answer.json()["errors"]) <= 20
    assert len(answer.content) < 10_000


def check_problem(answer: httpx.Response, status: int, field: str, allowed: str) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == status
    assert problem["type"].startswith("urn:mirage:problem:")
    assert problem["title"] and problem["detail"]
    assert problem["request_id"] == answer.headers["x-request-id"]
    if field:
        named = {one["field"]: one["allowed"] for one in problem["errors"]}
        assert field in named, named
        assert allowed in named[field]
