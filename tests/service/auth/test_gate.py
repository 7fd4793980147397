"""The gate: closed unless an endpoint says whom it lets in; one tenant never sees another's."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from rest_routes import concrete, routes
from tenants import Connect, NewKey
from uploads_made import png

from bench.noop import start_worker
from service.app import create_app
from service.auth.principal import Scope, declared_scope
from service.errors import ConfigurationError
from service.settings import Settings


def test_every_endpoint_declares_a_scope(settings: Settings) -> None:
    silent = [
        route.path for route in routes(create_app(settings)) if not declared_scope(route.endpoint)
    ]
    assert silent == []


def test_only_these_need_no_key(settings: Settings) -> None:
    found = routes(create_app(settings))
    public = {route.path for route in found if declared_scope(route.endpoint) is Scope.PUBLIC}
    assert public == {"/livez", "/readyz", "/v1/samples", "/v1/samples/{name}.png"}


async def test_a_route_without_a_scope_is_closed_even_to_keys(
    app: FastAPI, ann: httpx.AsyncClient
) -> None:
    async def careless() -> str:
        return "secret"

    app.get("/v1/careless")(careless)
    assert (await ann.get("/v1/careless")).status_code == 404  # the gate knows no such route
    app.behind_gate.append(app.routes[-1])  # type: ignore[attr-defined]
    refused = await ann.get("/v1/careless")
    assert refused.status_code == 403 and "declares no scope" in refused.json()["detail"]


@pytest.mark.parametrize("credential", ["", "nonsense", "mk_000000000000_" + "a" * 43])
async def test_without_a_valid_key_nothing_but_pages(client_of: Connect, credential: str) -> None:
    client = client_of(credential)
    for path in ("/", "/docs", "/viewer/main.js", "/openapi.json", "/livez", "/v1/samples"):
        assert (await client.get(path)).status_code == 200, path
    for method, path in [
        ("GET", "/v1/sessions"),
        ("GET", "/metrics"),
        ("DELETE", "/v1/sessions/s1"),
    ]:
        answer = await client.request(method, path)
        assert answer.status_code == 401, path
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["type"] == "urn:mirage:problem:unauthenticated"
        assert answer.json()["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize(
    ("sent", "seen"),
    [({}, "No key was sent. "), ({"Authorization": "mk_1"}, "not `Bearer` and a key. ")],
)
async def test_what_was_sent_for_a_key_is_told(
    client_of: Connect, sent: dict[str, str], seen: str
) -> None:
    answer = await client_of("").get("/v1/sessions", headers=sent)
    assert answer.status_code == 401
    assert f"{seen}Send it as `Authorization: Bearer mk_...`" in answer.json()["detail"]


async def test_a_refused_upload_is_not_read(client_of: Connect) -> None:
    read = 0

    async def endless() -> Any:
        nonlocal read
        while True:
            read += 1
            yield b"x" * 100_000

    headers = {"content-type": "multipart/form-data; boundary=x"}
    answer = await client_of("").post("/v1/sessions", content=endless(), headers=headers)
    assert answer.status_code == 401 and read <= 1


async def test_scopes(client_of: Connect, new_key: NewKey, anns: str) -> None:
    reader = client_of(await new_key("ann", Scope.READ))
    assert (await reader.get(f"/v1/sessions/{anns}")).status_code == 200
    path = {"actions": [{"yaw_deg": 5}]}
    answers = [
        await reader.post("/v1/sessions", files={"image": png()}),
        await reader.post(f"/v1/sessions/{anns}/generations", json=path),
        await reader.delete(f"/v1/sessions/{anns}"),
        await reader.get("/metrics"),
    ]
    assert [answer.status_code for answer in answers] == [403] * 4
    assert "needs the scope `walk`" in answers[1].json()["detail"]


async def test_anothers_world_is_a_404_on_every_endpoint(
    app: FastAPI, ann: httpx.AsyncClient, bob: httpx.AsyncClient, anns: str
) -> None:
    before = (await ann.get(f"/v1/sessions/{anns}")).json()
    tried = 0
    for route in routes(app):
        for method in getattr(route, "methods", None) or ():
            if not {"session_id", "video_id"} & set(route.param_convertors):
                continue
            tried += 1
            answers = []
            for session in (anns, f"s{0:023}"):
                answer = await bob.request(method, concrete(route, session), json={})
                text = answer.text.replace(session, "ID")
                problem = json.loads(text) | {"request_id": ""}
                answers.append((answer.status_code, problem))
            assert answers[0] == answers[1], route.path
            assert answers[0][0] == 404 and answers[0][1]["type"].endswith("unknown-session")
    assert tried >= 16
    assert (await ann.get(f"/v1/sessions/{anns}")).json() == before
    assert (await bob.get("/v1/sessions")).json()["sessions"] == []
    assert [one["id"] for one in (await ann.get("/v1/sessions")).json()["sessions"]] == [anns]


async def test_a_deleted_world_is_a_410_to_its_owner_only(
    ann: httpx.AsyncClient, bob: httpx.AsyncClient, anns: str
) -> None:
    assert (await ann.delete(f"/v1/sessions/{anns}")).status_code == 204
    assert (await ann.get(f"/v1/sessions/{anns}")).status_code == 410
    assert (await bob.get(f"/v1/sessions/{anns}")).status_code == 404


async def test_idempotency_keys_of_two_owners_do_not_meet(
    ann: httpx.AsyncClient, bob: httpx.AsyncClient
) -> None:
    key = {"Idempotency-Key": "one"}
    made = [
        await who.post("/v1/sessions", files={"image": png()}, headers=key) for who in (ann, bob)
    ]
    assert [answer.status_code for answer in made] == [201, 201]
    assert made[0].json()["id"] != made[1].json()["id"]


async def test_keys_of_one_owner_share_worlds(
    client_of: Connect, new_key: NewKey, anns: str
) -> None:
    second = client_of(await new_key("ann"))
    assert (await second.get(f"/v1/sessions/{anns}")).status_code == 200


async def test_rates(client_of: Connect, new_key: NewKey) -> None:
    slow = client_of(await new_key("ann", requests_per_s=0.6))  # a bucket of three
    statuses = [(await slow.get("/v1/sessions")).status_code for _ in range(4)]
    assert statuses == [200, 200, 200, 429]
    refused = await slow.get("/v1/sessions")
    assert 1 <= int(refused.headers["retry-after"]) <= 2
    assert refused.json()["type"] == "urn:mirage:problem:too-many-requests"


async def test_a_quota_of_sessions(client_of: Connect, new_key: NewKey) -> None:
    client = client_of(await new_key("ann", max_sessions=1))
    made = [await client.post("/v1/sessions", files={"image": png()}) for _ in range(2)]
    assert [answer.status_code for answer in made] == [201, 429]
    assert "retry-after" not in made[1].headers  # nobody knows when one is deleted
    assert "1 sessions at once; delete one" in made[1].json()["detail"]
    assert (await client.delete(made[0].headers["location"])).status_code == 204
    assert (await client.post("/v1/sessions", files={"image": png()})).status_code == 201


async def test_a_quota_of_sessions_holds_for_many_at_once(
    client_of: Connect, new_key: NewKey, keyed: Settings
) -> None:
    """Forks are asked for at once and made later, by the session's worker."""
    client = client_of(await new_key("ann", max_sessions=2))
    files = {"image": png()}
    made = await asyncio.gather(*(client.post("/v1/sessions", files=files) for _ in range(5)))
    assert sorted(answer.status_code for answer in made) == [201, 201, 429, 429, 429]
    first, second = (one.headers["location"] for one in made if one.status_code == 201)
    assert (await client.delete(second)).status_code == 204
    asking = (client.post(f"{first}:fork?wait_s=0", json={}) for _ in range(5))
    asked = await asyncio.gather(*asking)
    assert [answer.status_code for answer in asked] == [202] * 5
    worker = start_worker(keyed)
    try:
        forked = [await final(client, answer.headers["location"]) for answer in asked]
    finally:
        worker.terminate()
        worker.join()
    assert sorted(one["state"] for one in forked) == ["done", *["failed"] * 4]
    refusals = [one["error"] for one in forked if one["error"]]
    assert all(one["status"] == 429 and "2 sessions at once" in one["detail"] for one in refusals)
    assert len((await client.get("/v1/sessions")).json()["sessions"]) == 2


async def final(client: httpx.AsyncClient, generation: str) -> dict[str, Any]:
    async with asyncio.timeout(60):
        while True:
            told: dict[str, Any] = (await client.get(generation)).json()
            if told["state"] in ("done", "failed"):
                return told
            await asyncio.sleep(0.05)


async def test_a_path_of_more_frames_than_a_day_has_is_refused_for_good(
    client_of: Connect, new_key: NewKey
) -> None:
    client = client_of(await new_key("ann", frames_per_day=10))
    opened = await client.post("/v1/sessions", files={"image": png()})
    url = f"{opened.headers['location']}/generations"
    refused = await client.post(url, json={"actions": [{"yaw_deg": 1}] * 23})
    assert refused.status_code == 422 and "retry-after" not in refused.headers
    assert refused.json()["type"] == "urn:mirage:problem:over-quota"
    (problem,) = refused.json()["errors"]
    assert (problem["field"], problem["seen"]) == ("path", "23 frames")
    assert "at most 10 frames" in problem["allowed"]
    accepted = await client.post(url, json={"actions": [{"yaw_deg": 1}] * 10})
    assert accepted.status_code == 202  # nothing was taken for what was refused
    later = await client.post(url, json={"actions": [{"yaw_deg": 1}]})
    assert later.status_code == 429 and int(later.headers["retry-after"]) > 8000
    assert "the limit is 10 a day" in later.json()["detail"]


@pytest.mark.parametrize(
    ("origin", "status"),
    [(None, 201), ("http://localhost", 201), ("https://evil.example", 403), ("null", 403)],
)
async def test_pages_of_others_change_nothing_even_without_keys(
    http: httpx.AsyncClient, origin: str | None, status: int
) -> None:
    headers = {} if origin is None else {"Origin": origin}
    answer = await http.post("/v1/sessions", files={"image": png()}, headers=headers)
    assert answer.status_code == status
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8000", 200),
        ("127.0.0.1", 200),
        ("[::1]:8000", 200),
        ("mirage.localhost", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example:8000", 403),
        ("[", 403),
    ],
)
async def test_a_name_that_was_made_to_point_here_opens_nothing(
    http: httpx.AsyncClient, host: str, status: int
) -> None:
    headers = {"Host": host, "Origin": f"http://{host}"}  # to the browser they are the same
    assert (await http.get("/v1/sessions", headers=headers)).status_code == status
    assert (await http.get("/v1/sessions", headers={"Host": host})).status_code == status


async def test_with_keys_every_name_will_do(ann: httpx.AsyncClient) -> None:
    assert (await ann.get("/v1/sessions", headers={"Host": "mirage.example"})).status_code == 200


async def test_pages_that_are_named_may(settings: Settings, control: object) -> None:
    named = settings.model_copy(update={"cors_origins": "https://a.example, https://b.example"})
    app = create_app(named)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            origin = {"Origin": "https://b.example"}
            answer = await client.post("/v1/sessions", files={"image": png()}, headers=origin)
            assert answer.status_code == 201
            assert answer.headers["access-control-allow-origin"] == "https://b.example"
            assert {"Content-Range", "Idempotent-Replayed", "ETag"} <= set(
                answer.headers["access-control-expose-headers"].split(", ")
            )
            asked = origin | {"Access-Control-Request-Method": "DELETE"}
            for header in ("If-Match", "If-None-Match", "Last-Event-ID", "Range", "If-Range"):
                asked["Access-Control-Request-Headers"] = header
                answer = await client.options("/v1/sessions/s1", headers=asked)
                assert answer.status_code == 200, answer.text
            other = {"Origin": "https://c.example"}
            answer = await client.get("/livez", headers=other)
            assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "10.0.0.4", "mirage.example"])
def test_a_public_address_without_keys_is_refused(settings: Settings, host: str) -> None:
    public = settings.model_copy(update={"host": host})
    with pytest.raises(ConfigurationError, match="MIRAGE_REQUIRE_KEYS"):
        create_app(public)
    create_app(public.model_copy(update={"insecure": True}))
    create_app(public.model_copy(update={"require_keys": True}))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_the_loopback_needs_no_keys(settings: Settings, host: str) -> None:
    create_app(settings.model_copy(update={"host": host}))
