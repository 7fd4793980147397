"""Webhooks: only where the operator allows, signed, until they arrive."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hmac
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_worker import FakeWorker, working
from uploads_made import png

from service import webhooks
from service.app import create_app
from service.control import keys
from service.control.plane import ControlPlane
from service.control.requests import Progress, RequestState
from service.errors import ConfigurationError, InvalidRequest
from service.settings import Settings, load_settings
from service.webhooks import Errand, Webhooks

TARGET = "https://hooks.example/mirage"


@pytest.fixture
def telling(settings: Settings) -> Settings:
    targets = f"{TARGET}, http://127.0.0.1:9000/a/b/"
    return settings.model_copy(update={"webhook_targets": targets, "webhook_secret": "s" * 24})


class Receiver:
    """Somebody's server: answers with the next status and keeps what it got."""

    def __init__(self, *statuses: int) -> None:
        self.statuses, self.got = list(statuses), []  # type: ignore[var-annotated]

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.got.append(request)
        status = self.statuses.pop(0) if self.statuses else 204
        if status == 0:
            raise httpx.ConnectError("nobody there")
        return httpx.Response(status, headers={"location": "http://10.0.0.1/secret"})


async def finished_walk(http: httpx.AsyncClient, settings: Settings, **body: Any) -> httpx.Response:
    session = (await http.post("/v1/sessions", files={"image": png()})).json()["id"]
    url = f"/v1/sessions/{session}/generations"
    answer = await http.post(url, json={"actions": [{"yaw_deg": 4}]} | body)
    if answer.status_code == 202:
        async with working(FakeWorker(settings)):
            while (await http.get(answer.headers["location"])).json()["state"] != "done":
                pass
    return answer


@pytest.mark.parametrize(
    ("target", "good"),
    [
        (TARGET, True),
        (f"{TARGET}/x?y=1", True),
        ("http://127.0.0.1:9000/a/b", True),
        ("http://127.0.0.1:9000/a/b/c", True),
        ("http://127.0.0.1:9000/a/bc", False),
        ("http://127.0.0.1:9000/a/b/../c", False),
        ("http://127.0.0.1:9000/a/b/..", False),
        ("http://127.0.0.1:9000/a/b/c/..", True),
        ("http://127.0.0.1:9000/a/b//c", False),
        ("http://127.0.0.1:9000/a/b/\\..\\..\\c", False),
        (f"{TARGET}/\x01", False),
        (f"{TARGET}?\x7f", False),
        (f"{TARGET}/{'x' * 70_000}", False),
        ("http://127.0.0.1:9000/a/b/%2e%2e/c", False),
        ("http://127.0.0.1:9000/a/b/..;/c", False),
        ("http://127.0.0.1:9001/a/b", False),
        ("http://127.0.0.1:99999/a/b", False),
        ("http://hooks.example/mirage", False),
        ("https://hooks.example:8443/mirage", False),
        ("https://hooks.example/mirages", False),
        ("https://hooks.example.evil.example/mirage", False),
        ("https://evil.example@hooks.example/mirage", False),
        ("https://hooks.example@evil.example/mirage", False),
        ("//hooks.example/mirage", False),
        ("file:///etc/passwd", False),
        ("", False),
    ],
)
async def test_targets(telling: Settings, control: ControlPlane, target: str, good: bool) -> None:
    webhooks = Webhooks(control, telling)
    if good:
        webhooks.check(target)
    else:
        with pytest.raises(InvalidRequest, match="not allowed"):
            webhooks.check(target)


async def test_who_is_refused_is_told_no_secret_of_the_targets(
    telling: Settings, control: ControlPlane
) -> None:
    targets = "https://me:secret@hooks.example/a, https://hooks.example/b?token=secret"
    webhooks = Webhooks(control, telling.model_copy(update={"webhook_targets": targets}))
    with pytest.raises(InvalidRequest) as refused:
        webhooks.check("https://elsewhere.example")
    allowed = refused.value.fields[0].allowed
    assert allowed.count("hooks.example/") == 2 and "secret" not in allowed


async def test_none_is_allowed_unless_the_operator_says_so(
    http: httpx.AsyncClient, settings: Settings, control: ControlPlane
) -> None:
    refused = await finished_walk(http, settings, webhook=TARGET)
    assert refused.status_code == 422
    assert "MIRAGE_WEBHOOK_TARGETS" in refused.json()["errors"][0]["allowed"]
    assert (await http.get("/v1/webhook-secret")).status_code == 409
    assert await control.redis.zcard(keys.WEBHOOKS) == 0


async def test_a_finished_generation_is_told_once_and_signed(
    telling: Settings, control: ControlPlane, samples: Path
) -> None:
    app, receiver = create_app(telling, samples), Receiver(500, 0, 302, 204)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            walk = (await finished_walk(http, telling, webhook=f"{TARGET}/x")).json()
            secret = (await http.get("/v1/webhook-secret")).json()["secret"]
            webhooks = Webhooks(control, telling, httpx.MockTransport(receiver))
            for _ in range(5):  # a redirect is a failure like any other; each try waits longer
                for member, _ in await control.redis.zrange(keys.WEBHOOKS, 0, -1, withscores=True):
                    await control.redis.zadd(keys.WEBHOOKS, {member: 0})
                await webhooks.deliver_due()
    assert len(receiver.got) == 4
    assert {str(request.url) for request in receiver.got} == {f"{TARGET}/x"}
    last = receiver.got[-1]
    told = json.loads(last.content)
    assert (told["type"], told["generation"]["id"]) == ("generation.done", walk["id"])
    name, moment = last.headers["webhook-id"], last.headers["webhook-timestamp"]
    assert {request.headers["webhook-id"] for request in receiver.got} == {name}
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = f"{name}.{moment}.".encode() + last.content
    expected = base64.b64encode(hmac.digest(key, signed, "sha256")).decode()
    assert last.headers["webhook-signature"] == f"v1,{expected}"
    assert await control.redis.zcard(keys.WEBHOOKS) == 0


async def test_owners_have_different_secrets(telling: Settings, control: ControlPlane) -> None:
    webhooks = Webhooks(control, telling)
    assert len({webhooks.secret_of(owner) for owner in ("", "ann", "bob")}) == 3


async def test_what_is_not_final_waits_and_what_is_gone_is_forgotten(
    http: httpx.AsyncClient, session: str, telling: Settings, control: ControlPlane
) -> None:
    receiver = Receiver()
    webhooks = Webhooks(control, telling, httpx.MockTransport(receiver))
    body = {"actions": [{"yaw_deg": 4}]}
    walk = (await http.post(f"/v1/sessions/{session}/generations", json=body)).json()
    errand = Errand(session=session, request=walk["id"], target=TARGET, owner="")
    for _ in range(2):
        await control.redis.zadd(keys.WEBHOOKS, {errand.model_dump_json(): 0})
        await webhooks.deliver_due()
        await webhooks.deliver_due()  # not due again yet
    assert await control.redis.zcard(keys.WEBHOOKS) == 1
    await http.delete(f"/v1/sessions/{session}")
    await control.redis.zadd(keys.WEBHOOKS, {errand.model_dump_json(): 0})
    await webhooks.deliver_due()
    assert await control.redis.zcard(keys.WEBHOOKS) == 0 and receiver.got == []


async def final(control: ControlPlane, name: str, target: str) -> None:
    """An errand of a session of this name whose request is done."""
    done = Progress(
        id="r", kind="generate", state=RequestState.DONE, total=1, done=1, created_s=1.0
    )
    await control.redis.hset(keys.record(name), "state", "idle")
    await control.redis.hset(keys.requests(name), "r", done.model_dump_json())
    errand = Errand(session=name, request="r", target=target, owner=name)
    await control.redis.zadd(keys.WEBHOOKS, {errand.model_dump_json(): 0})


async def test_a_receiver_that_drips_holds_nobody_up(
    telling: Settings, control: ControlPlane
) -> None:
    async def drip(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A header without end; each read of it is in time."""
        writer.write(b"HTTP/1.1 200 OK\r\nx: ")
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.02)

    async with await asyncio.start_server(drip, "127.0.0.1", 0) as server:
        await final(control, "s1", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
        webhooks = Webhooks(control, telling, timeout_s=0.5)
        await asyncio.wait_for(webhooks.deliver_due(), 60)
        (again,) = await control.redis.zrange(keys.WEBHOOKS, 0, -1)
        assert Errand.model_validate_json(again).tries == 1
        server.close()


async def test_what_stands_behind_the_question_mark_is_not_logged(
    telling: Settings, control: ControlPlane, logs_of: Callable[..., list[Any]]
) -> None:
    """Often that is what a receiver knows its senders by."""
    logs, receiver = logs_of(webhooks), Receiver(500)
    await final(control, "s1", f"{TARGET}?token=swordfish")
    await Webhooks(control, telling, httpx.MockTransport(receiver)).deliver_due()
    (failed,) = logs
    assert (failed["event"], failed["target"]) == ("webhook failed", TARGET)
    assert "swordfish" not in str(logs) and "swordfish" in str(receiver.got[0].url)


async def test_an_errand_that_can_t_be_read_costs_no_other(
    telling: Settings, control: ControlPlane, logs_of: Callable[..., list[Any]]
) -> None:
    logs, receiver = logs_of(webhooks), Receiver()
    newer = json.dumps({"of": "another version", "target": f"{TARGET}?token=swordfish"})
    await control.redis.zadd(keys.WEBHOOKS, {newer: 0, newer[:-1]: 0})
    await final(control, "s1", TARGET)
    await Webhooks(control, telling, httpx.MockTransport(receiver)).deliver_due()
    assert len(receiver.got) == 1
    assert [one["event"] for one in logs] == ["webhook not looked at"] * 2
    assert "swordfish" not in str(logs)


async def test_a_look_that_fails_logs_no_more_than_a_failed_delivery(
    telling: Settings, control: ControlPlane, logs_of: Callable[..., list[Any]]
) -> None:
    logs = logs_of(webhooks)
    await final(control, "s1", f"{TARGET}?token=swordfish")
    await control.redis.hset(keys.requests("s1"), "r", "no progress")
    await Webhooks(control, telling, httpx.MockTransport(Receiver())).deliver_due()
    (failed,) = logs
    assert (failed["event"], failed["target"]) == ("webhook not looked at", TARGET)
    assert "swordfish" not in str(logs)


async def test_deliveries_go_on_whatever_went_wrong(
    telling: Settings, control: ControlPlane
) -> None:
    class Stumbling(Webhooks):
        rounds = 0

        async def deliver_due(self) -> None:
            self.rounds += 1
            raise ValueError("nobody foresaw this")

    webhooks = Stumbling(control, telling)
    async with webhooks.running(), asyncio.timeout(60):
        while webhooks.rounds < 2:  # noqa: ASYNC110 a task of its own counts
            await asyncio.sleep(0.01)


async def test_a_walk_that_is_refused_is_not_told(
    telling: Settings, control: ControlPlane, samples: Path
) -> None:
    app = create_app(telling, samples)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            body = {"poses": [{"position": [0, 0, 0], "quaternion": [0, 0, 0, 1]}]}
            answer = await http.post("/v1/sessions/s1/generations", json=body | {"webhook": TARGET})
    assert answer.status_code == 404
    assert await control.redis.zcard(keys.WEBHOOKS) == 0


def test_targets_need_a_secret_and_it_is_never_printed() -> None:
    with pytest.raises(ConfigurationError, match="MIRAGE_WEBHOOK_SECRET of 24"):
        load_settings({"MIRAGE_WEBHOOK_TARGETS": TARGET})
    with pytest.raises(ConfigurationError, match="24 characters") as refused:
        load_settings({"MIRAGE_WEBHOOK_TARGETS": TARGET, "MIRAGE_WEBHOOK_SECRET": "hunter2"})
    assert "hunter2" not in str(refused.value)
    good = {"MIRAGE_WEBHOOK_TARGETS": TARGET, "MIRAGE_WEBHOOK_SECRET": "hunter2" * 4}
    assert load_settings(good).describe()["webhook_secret"] == "***"
