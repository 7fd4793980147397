"""One image and a path in, one video out."""

from __future__ import annotations

import asyncio
import io
import json
from typing import Any
from urllib.parse import unquote

import av
import httpx
import numpy as np
import pytest
from fake_worker import FakeWorker, working
from uploads_made import png

from service.control import keys
from service.control.plane import ControlPlane
from service.control.requests import Generate
from service.errors import TooManyRequests
from service.poses import flat
from service.settings import Settings

URL = "/v1/videos"


async def asked(http: httpx.AsyncClient, **form: Any) -> httpx.Response:
    data = {"actions": "forward 0.5, yaw 8"} | form
    data = {name: value for name, value in data.items() if value is not None}
    return await http.post(URL, data=data, files={"input_reference": png()})


async def finished(http: httpx.AsyncClient, video: str) -> dict[str, Any]:
    async with asyncio.timeout(60):
        while True:
            job = (await http.get(f"{URL}/{video}")).json()
            if job["status"] in ("completed", "failed"):
                return dict(job)
            await asyncio.sleep(0.01)


async def walk_on(control: ControlPlane, session: str) -> None:
    """Another frame, as soon as there is room to ask for it."""
    step = Generate(poses=[flat(np.eye(4))])
    while True:
        try:
            await control.requests.append(session, step)
            return
        except TooManyRequests:
            await asyncio.sleep(0.01)


async def test_ask_poll_fetch_delete(http: httpx.AsyncClient, settings: Settings) -> None:
    answer = await asked(http, prompt="an attic", seconds="0.7", size="64x32", model="mini")
    job = answer.json()
    assert (answer.status_code, job["status"], job["object"]) == (200, "queued", "video")
    assert job["model"] is None  # until a worker has opened the world
    assert answer.headers["location"] == f"{URL}/{job['id']}"
    assert (await http.get(f"{URL}/{job['id']}/content")).status_code == 409
    async with working(FakeWorker(settings)):
        done = await finished(http, job["id"])
    assert (done["status"], done["progress"], done["seconds"]) == ("completed", 100, "0.70")
    assert done["model"] == "fake@0"
    video = await http.get(f"{URL}/{job['id']}/content")
    with av.open(io.BytesIO(video.content)) as container:
        assert len(list(container.decode(video=0))) == 7
        assert container.streams.video[0].average_rate == 10
    thumbnail = await http.get(f"{URL}/{job['id']}/content?variant=thumbnail")
    assert thumbnail.headers["content-type"] == "image/webp"
    part = await http.get(f"{URL}/{job['id']}/content", headers={"Range": "bytes=0-7"})
    assert (part.status_code, part.content) == (206, video.content[:8])
    assert (await http.get(f"/v1/sessions/{done['session']}")).status_code == 200
    gone = await http.delete(f"{URL}/{job['id']}")
    assert gone.json() == {"id": job["id"], "object": "video.deleted", "deleted": True}
    assert (await http.get(f"{URL}/{job['id']}")).status_code == 410


async def test_poses_do_as_well(http: httpx.AsyncClient) -> None:
    poses = json.dumps([{"matrix": flat(np.eye(4))}] * 3)
    job = (await asked(http, actions=None, poses=poses)).json()
    assert job["seconds"] == "0.20"


async def test_actions_may_be_those_of_a_generation(http: httpx.AsyncClient) -> None:
    actions = json.dumps([{"forward_m": 0.5}, {"yaw_deg": 8}])
    assert (await asked(http, actions=actions)).json()["seconds"] == "0.47"  # 7 frames at 15


async def test_what_nobody_sent_is_not_seen(http: httpx.AsyncClient) -> None:
    (problem,) = (await asked(http, actions=None)).json()["errors"]
    assert (problem["field"], problem["seen"]) == ("body", "nothing")


async def test_head_tells_the_size_of_a_video(http: httpx.AsyncClient, settings: Settings) -> None:
    job = (await asked(http)).json()
    async with working(FakeWorker(settings)):
        await finished(http, job["id"])
    url = f"{URL}/{job['id']}/content"
    head, video = await http.head(url), await http.get(url)
    assert (head.status_code, head.content) == (200, b"")
    assert int(head.headers["content-length"]) == len(video.content)
    assert head.headers["accept-ranges"] == "bytes"


async def test_pages(http: httpx.AsyncClient, session: str) -> None:
    made = [(await asked(http)).json()["id"] for _ in range(3)]
    first = (await http.get(f"{URL}?limit=2")).json()
    assert len(first["data"]) == 2 and first["has_more"]
    second = (await http.get(f"{URL}?limit=2&after={first['last_id']}")).json()
    assert len(second["data"]) == 1 and not second["has_more"]
    assert {one["id"] for one in first["data"] + second["data"]} == set(made)
    assert (await http.get(f"{URL}/video_{session}")).status_code == 404  # a session, no video


async def test_a_video_that_its_session_has_forgotten_is_listed_and_can_be_deleted(
    http: httpx.AsyncClient, settings: Settings, control: ControlPlane
) -> None:
    made = [(await asked(http)).json() for _ in range(2)]
    async with working(FakeWorker(settings)):
        for job in made:
            await finished(http, job["id"])
        async with asyncio.timeout(60):
            for _ in range(keys.REQUESTS_KEPT):
                await walk_on(control, made[0]["session"])
    url = f"{URL}/{made[0]['id']}"
    other, forgotten = (await http.get(URL)).json()["data"]
    assert (other["id"], other["status"]) == (made[1]["id"], "completed")
    assert (await http.get(url)).json() == forgotten
    assert (forgotten["id"], forgotten["status"]) == (made[0]["id"], "failed")
    assert (forgotten["progress"], forgotten["seconds"]) == (None, None)
    assert "forgotten how its video ended" in forgotten["error"]["message"]
    content = await http.get(f"{url}/content")
    assert content.status_code == 404
    assert content.json()["detail"] == forgotten["error"]["message"]
    assert (await http.delete(url)).status_code == 200
    assert [one["id"] for one in (await http.get(URL)).json()["data"]] == [made[1]["id"]]


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no path": ({"actions": None}, "body"),
    "two paths": ({"poses": "[]"}, "poses"),
    "words": ({"actions": "jump 3"}, "actions"),
    "JSON that is no list": ({"actions": "[{"}, "actions"),
    "JSON of nothing": ({"actions": "[1]"}, "actions[0]"),
    "no words": ({"actions": "forward far"}, "actions"),
    "infinite": ({"actions": "forward inf"}, "actions[0].forward_m"),
    "no JSON": ({"actions": None, "poses": "["}, "poses"),
    "scaled": ({"actions": None, "poses": json.dumps([{"matrix": [2.0] * 16}])}, "poses[0].matrix"),
    "too long": ({"actions": "forward 900"}, "actions"),
    "size": ({"size": "1280x720"}, "size"),
    "model": ({"model": "sora-2"}, "model"),
    "seconds": ({"seconds": "60"}, "seconds"),
    "lens": ({"fov_deg": "1"}, "fov_deg"),
    "unknown": ({"n": "2"}, "n"),
}


@pytest.mark.parametrize("name", BAD)
async def test_a_bad_video_is_explained_and_leaves_nothing(
    http: httpx.AsyncClient, control: ControlPlane, name: str
) -> None:
    form, field = BAD[name]
    answer = await asked(http, **form)
    assert answer.status_code == 422, answer.text
    assert field in [one["field"] for one in answer.json()["errors"]], answer.json()
    assert set(await control.redis.keys("*")) <= {keys.MARKER.encode()}


async def test_errors_are_said_as_openai_clients_read_them(http: httpx.AsyncClient) -> None:
    problem = (await asked(http, size="1280x720")).json()
    assert problem["error"] == {
        "message": problem["detail"],
        "type": "invalid_request_error",
        "param": "size",
        "code": "invalid-request",
    }
    unknown = (await http.get(f"{URL}/video_s1/content")).json()["error"]
    assert (unknown["code"], unknown["param"]) == ("unknown-session", None)
    assert "error" not in (await http.get("/v1/sessions/s1")).json()


@pytest.mark.parametrize("video", ["video_s1", "video_", "video_%00", "sora", "video_video_s1"])
async def test_no_such_video(http: httpx.AsyncClient, video: str) -> None:
    for url in (f"{URL}/{video}", f"{URL}/{video}/content"):
        answer = await http.get(url)
        assert answer.status_code == 404
        assert answer.json()["detail"] == f"there is no video {unquote(video)!r}"
    assert (await http.delete(f"{URL}/{video}")).status_code == 404
