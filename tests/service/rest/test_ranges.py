"""Range requests, as players make them."""

from __future__ import annotations

import httpx
import pytest
from fake_worker import FakeWorker, working
from starlette.exceptions import HTTPException

from service.rest.ranges import ranged
from service.settings import Settings
from service.video_cache import VideoCache

CONTENT = bytes(range(100))


@pytest.mark.parametrize(
    ("asked", "status", "body"),
    [
        (None, 200, CONTENT),
        ("bytes=0-9", 206, CONTENT[:10]),
        ("bytes=90-", 206, CONTENT[90:]),
        ("bytes=-5", 206, CONTENT[-5:]),
        ("bytes=-500", 206, CONTENT),
        ("bytes=50-5000", 206, CONTENT[50:]),
        ("bytes = 1-1", 206, CONTENT[1:2]),
        ("bytes=0-1,4-5", 200, CONTENT),
        ("bytes=-", 200, CONTENT),
        ("lines=1-2", 200, CONTENT),
        ("bytes=x-y", 200, CONTENT),
    ],
)
def test_parts(asked: str | None, status: int, body: bytes) -> None:
    answer = ranged(CONTENT, "video/mp4", {}, asked, None)
    assert (answer.status_code, answer.body) == (status, body)
    assert answer.headers["accept-ranges"] == "bytes"
    if status == 206:
        first = CONTENT.index(body)
        assert answer.headers["content-range"] == f"bytes {first}-{first + len(body) - 1}/100"


@pytest.mark.parametrize("asked", ["bytes=100-", "bytes=5-4", "bytes=-0"])
def test_parts_that_are_not_there(asked: str) -> None:
    with pytest.raises(HTTPException) as refused:
        ranged(CONTENT, "video/mp4", {}, asked, None)
    assert refused.value.status_code == 416
    assert refused.value.headers == {"Content-Range": "bytes */100"}


def test_another_version_is_sent_whole() -> None:
    tag = ranged(CONTENT, "video/mp4", {}, None, None).headers["etag"]
    assert ranged(CONTENT, "video/mp4", {}, "bytes=0-1", tag).status_code == 206
    assert ranged(CONTENT, "video/mp4", {}, "bytes=0-1", '"old"').status_code == 200
    assert ranged(CONTENT, "video/mp4", {}, None, None, tag).status_code == 304


def test_the_cache_forgets_the_least_recently_used() -> None:
    cache = VideoCache(10)
    cache.put(("a",), b"12345")
    cache.put(("b",), b"12345")
    assert cache.get(("a",)) == b"12345"
    cache.put(("c",), b"1")
    assert cache.get(("b",)) is None and cache.get(("a",)) and cache.get(("c",))
    cache.put(("d",), b"x" * 11)
    assert cache.get(("d",)) is None and cache.get(("a",))


async def test_a_video_in_two_halves(
    http: httpx.AsyncClient, session: str, settings: Settings
) -> None:
    body = {"actions": [{"yaw_deg": 12}]}
    path = (await http.post(f"/v1/sessions/{session}/generations", json=body)).json()
    url = f"/v1/sessions/{session}/generations/{path['id']}/video.mp4"
    async with working(FakeWorker(settings)):
        while (whole := await http.get(url)).status_code == 409:
            pass
    parts = [
        await http.get(url, headers={"Range": asked}) for asked in ("bytes=0-99", "bytes=100-")
    ]
    assert [part.status_code for part in parts] == [206, 206]
    assert parts[0].content + parts[1].content == whole.content
    beyond = await http.get(url, headers={"Range": "bytes=99999999-"})
    assert beyond.status_code == 416 and beyond.json()["type"].startswith("urn:mirage:problem:")


async def test_generations_page_by_page(http: httpx.AsyncClient, session: str) -> None:
    url = f"/v1/sessions/{session}/generations"
    for _ in range(4):
        await http.post(url, json={"actions": [{"yaw_deg": 4}]})
    seen, query = [], "limit=2"
    while True:
        page = (await http.get(f"{url}?{query}")).json()
        seen += page["generations"]
        if page["next_cursor"] is None:
            break
        query = f"limit=2&cursor={page['next_cursor']}"
    assert [one["kind"] for one in seen] == ["init", *["generate"] * 4]
    assert (await http.get(f"{url}?cursor=r_0")).status_code == 422


async def test_events_go_on_where_a_reader_stopped(
    http: httpx.AsyncClient, session: str, settings: Settings
) -> None:
    body = {"actions": [{"yaw_deg": 20}]}
    path = (await http.post(f"/v1/sessions/{session}/generations", json=body)).json()
    url = f"/v1/sessions/{session}/generations/{path['id']}/events"
    async with working(FakeWorker(settings, step_s=0.02)):
        text = (await http.get(url, headers={"Last-Event-ID": "3"})).text
    assert [line for line in text.splitlines() if line.startswith("id: ")] == ["id: 4", "id: 5"]
