"""Health, metrics, pages and request ids: what the app has beside its endpoints."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import httpx
import pytest
from fake_worker import FakeWorker, working
from redis.asyncio import Redis
from uploads_made import png

from service.app import create_app
from service.auth.keyring import Keyring
from service.auth.principal import Scope
from service.control import keys
from service.control.plane import ControlPlane
from service.control.workers import WorkerRecord, Workers
from service.limits import MAX_HEAD_BYTES
from service.local.embedded import EmbeddedValkey
from service.settings import Settings
from service.telemetry import LIMITS


async def test_alive_without_a_worker_but_not_ready(
    http: httpx.AsyncClient, settings: Settings
) -> None:
    assert (await http.get("/livez")).status_code == 200
    answer = await http.get("/readyz")
    assert answer.status_code == 503
    assert "No worker is alive" in answer.json()["detail"]
    assert "or wait: `mirage up` starts one" in answer.json()["detail"]
    assert answer.headers["retry-after"] == "5"
    async with working(FakeWorker(settings)):
        while (answer := await http.get("/readyz")).status_code != 200:
            pass
    assert answer.json()["num_workers"] == 1


async def test_not_ready_while_every_worker_waits_something_out(
    http: httpx.AsyncClient, control: ControlPlane
) -> None:
    record = WorkerRecord(
        id="w1",
        weights="fake@0",
        backbone="fake",
        device="cpu",
        memories=["latent"],
        capacity=1,
        started_s=0,
        problem="the store is full",
    )
    workers = Workers(control.redis, lease_s=300)
    await workers.beat(record)
    answer = await http.get("/readyz")
    assert answer.status_code == 503
    assert "worker w1: the store is full" in answer.json()["detail"]
    await workers.beat(record.model_copy(update={"id": "w2", "problem": ""}))
    assert (await http.get("/readyz")).status_code == 200


async def test_not_ready_while_redis_is_away(tmp_path: Path, settings: Settings) -> None:
    valkey = EmbeddedValkey(tmp_path)
    await valkey.start()
    app = create_app(settings.model_copy(update={"redis_url": valkey.url}))
    async with app.router.lifespan_context(app):
        await valkey.stop()
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            for path in ("/readyz", "/v1/sessions", "/v1/sessions/s1", "/v1/sessions/s1/frames"):
                answer = await client.get(path)
                assert answer.status_code == 503, (path, answer.text)
                assert answer.json()["type"] == "urn:mirage:problem:control-plane-down"
                assert str(tmp_path) not in answer.text  # where it is, only the log says
            assert (await client.get("/livez")).status_code == 200
            assert "mirage_http_requests_total" in (await client.get("/metrics")).text


async def test_a_world_can_be_deleted_where_redis_is_full(
    tmp_path: Path, settings: Settings
) -> None:
    async with EmbeddedValkey(tmp_path) as url:
        app = create_app(settings.model_copy(update={"redis_url": url, "require_keys": True}))
        async with app.router.lifespan_context(app):
            control = app.state.gateway.control
            scopes = frozenset({Scope.READ, Scope.WRITE})
            _, key = await Keyring(control.redis, control.kept).create(
                "ann", scopes, requests_per_s=9.0
            )
            transport = httpx.ASGITransport(app=app)
            async with httpx.AsyncClient(
                transport=transport,
                base_url="http://localhost",
                headers={"Authorization": f"Bearer {key}"},
            ) as one:
                made = await one.post("/v1/sessions", files={"image": png()})
                where = made.headers["location"]
                await control.redis.config_set("maxmemory", 1)
                full = await one.post("/v1/sessions", files={"image": png()})
                assert (full.status_code, full.json()["detail"]) == (503, "Redis is full.")
                assert (await one.delete(where)).status_code == 204
                assert (await one.get(where)).status_code == 410
            await control.sweeper.empty_graves()
            assert await control.collection.bury(made.json()["id"]) == 0  # the second look
            assert not list(settings.data_dir.rglob(f"{made.json()['id']}/uploads"))
            assert not await control.redis.exists(keys.GRAVES, keys.EXPIRY)


async def test_metrics_name_routes_not_paths(http: httpx.AsyncClient, session: str) -> None:
    await http.get(f"/v1/sessions/{session}")
    await http.get("/nothing/here")
    text = (await http.get("/metrics")).text
    assert 'route="/v1/sessions/{session_id}",status="200"' in text
    assert 'route="unmatched",status="404"' in text
    assert session not in text


async def test_every_limit_that_was_reached_is_counted(
    http: httpx.AsyncClient, session: str, settings: Settings
) -> None:
    url, step = f"/v1/sessions/{session}/generations", {"actions": [{"yaw_deg": 4}]}
    large = png() + bytes(settings.max_upload_bytes)
    poses = [{"position": [0, 0, 0], "quaternion": [0, 0, 0, 1]}] * (settings.max_path_poses + 1)
    tried = {
        "upload_bytes": await http.post("/v1/sessions", files={"image": large}),
        "body_bytes": await http.post(url, content=b" " * 10_000_000),
        "path_poses": await http.post(url, json={"poses": poses}),
    }
    while (answer := await http.post(url, json=step)).status_code == 202:
        pass
    tried["backlog"] = answer
    assert [one.status_code for one in tried.values()] == [422, 413, 422, 429]
    lines = (await http.get("/metrics")).text.splitlines()
    counted = {
        limit: float(line.rpartition(" ")[2])
        for line in lines
        for limit in LIMITS
        if line.startswith(f'mirage_limit_refusals_total{{limit="{limit}"}}')
    }
    assert counted == dict.fromkeys(LIMITS, 0.0) | dict.fromkeys(tried, 1.0)
    assert f'mirage_limit{{limit="max_backlog"}} {settings.max_backlog:.1f}' in lines


async def test_request_ids(http: httpx.AsyncClient) -> None:
    given = await http.get("/livez", headers={"X-Request-Id": "robot-7.1"})
    assert given.headers["x-request-id"] == "robot-7.1"
    strange = await http.get("/livez", headers={"X-Request-Id": "a b\x7f"})
    assert re.fullmatch(r"[0-9a-f]{32}", strange.headers["x-request-id"])


async def test_a_defect_is_a_problem_too(http: httpx.AsyncClient, control: ControlPlane) -> None:
    await control.redis.hset("mirage:{s9}:record", mapping={"state": "idle"})  # no such record
    answer = await http.get("/v1/sessions/s9")
    assert answer.status_code == 500
    assert answer.json()["type"] == "urn:mirage:problem:internal"
    assert answer.json()["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize("path", ["/", "/docs", "/viewer/main.js", "/viewer/style.css"])
async def test_pages_need_no_other_server(http: httpx.AsyncClient, path: str) -> None:
    page = await http.get(path)
    assert page.status_code == 200
    assert page.headers["cache-control"] == "no-cache"
    assert not re.search(r"""(?:src|href|from|import\()\s*[=]?\s*["']https?://""", page.text)


async def test_the_viewer_serves_only_its_folder(http: httpx.AsyncClient) -> None:
    for path in ("/viewer/../app.py", "/viewer/%2e%2e/app.py", "/viewer/..%2fapp.py"):
        assert (await http.get(path)).status_code == 404


async def test_openapi_describes_every_endpoint(http: httpx.AsyncClient) -> None:
    api = (await http.get("/openapi.json")).json()
    for path, methods in api["paths"].items():
        for method, operation in methods.items():
            assert operation.get("tags"), (path, method)
            content = operation["responses"]["default"]["content"]
            assert content["application/problem+json"]["schema"]["$ref"].endswith("/ProblemOut")
            for code, response in operation["responses"].items():
                assert response.get("content") or code in ("204", "304"), (path, method, code)
                for media in response.get("content", {}).values():
                    assert media["schema"], (path, method, code)
    form = api["paths"]["/v1/sessions"]["post"]["requestBody"]["content"]
    assert list(form) == ["multipart/form-data"]


async def test_generated_clients_have_names_that_can_be_read(http: httpx.AsyncClient) -> None:
    api = (await http.get("/openapi.json")).json()
    operations = [one for methods in api["paths"].values() for one in methods.values()]
    names = [one["operationId"] for one in operations]
    assert len(names) == len(set(names))
    assert {"create_session", "list_frames", "get_video", "rewind_session"} <= set(names)
    states = api["components"]["schemas"]["SessionState"]["enum"]
    assert states == ["waiting", "active", "idle", "failed", "deleted"]


async def test_the_lifespan_refuses_a_redis_that_is_not_there(settings: Settings) -> None:
    app = create_app(settings.model_copy(update={"redis_url": "redis://127.0.0.1:1/0"}))
    with pytest.raises(Exception, match="Redis does not answer"):
        async with app.router.lifespan_context(app):
            pass


async def test_two_apps_in_one_process(http: httpx.AsyncClient, settings: Settings) -> None:
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        redis: Redis = app.state.gateway.control.redis
        assert await redis.ping()


@pytest.mark.parametrize(
    "begun",
    [
        b"GET /",
        b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX-Long: ",
        b"GET /livez HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 10_000,
        b"POST /livez HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: ",
    ],
    ids=["address", "header", "headers", "trailer"],
)
async def test_a_head_without_an_end_is_not_kept(server_url: str, begun: bytes) -> None:
    host, _, port = server_url.removeprefix("http://").partition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(begun)
    num_taken = 0
    async with asyncio.timeout(60):
        try:
            while num_taken < 100 * MAX_HEAD_BYTES:
                writer.write(b"a" * 10_000)
                await writer.drain()
                num_taken += 10_000
        except ConnectionError:
            pass
    writer.close()
    assert num_taken < 100 * MAX_HEAD_BYTES


async def test_heads_that_end_and_bodies_may_be_long(server_url: str) -> None:
    async with httpx.AsyncClient(base_url=server_url) as http:
        for _ in range(3):
            assert (await http.get("/livez", headers={"x-long": "a" * 60_000})).status_code == 200
            files = {"image": b"a" * 20 * MAX_HEAD_BYTES}
            assert (await http.post("/v1/sessions", files=files)).status_code == 422
