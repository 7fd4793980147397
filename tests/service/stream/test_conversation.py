"""The generator behind every streaming transport, without a transport."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from fake_worker import FakeWorker, working
from plane import frame
from stream_client import IDENTITY, Client

from service.control import keys, sessions
from service.control.frames import event_id
from service.control.plane import ControlPlane
from service.errors import InvalidRequest, SegmentCorrupt, SessionDeleted, UnknownSession
from service.gateway import Gateway
from service.settings import Settings
from service.stream.talk import OUTBOX_LENGTH


@pytest.fixture
async def client(gateway: Gateway, session: str) -> AsyncIterator[Client]:
    client = Client(gateway, session)
    yield client
    await client.close()


async def test_hello_then_the_first_frame(client: Client, session: str, settings: Settings) -> None:
    hello = (await client.get("hello")).head
    assert hello["session"] == session
    assert (hello["protocol"], hello["width"], hello["height"]) == (1, 64, 32)
    assert (await client.get("state")).head["state"] == "waiting"
    async with working(FakeWorker(settings)):
        frame = await client.get("frame")
    assert frame.head["frame"] == 0
    assert frame.head["matrix"] == IDENTITY
    assert frame.head["num_points"] == 100
    assert frame.body.startswith(b"RIFF")


async def test_a_live_pose_comes_back_with_its_own_clock_and_count(
    client: Client, settings: Settings
) -> None:
    async with working(FakeWorker(settings)):
        await client.get("frame")
        client.send(type="pose", matrix=IDENTITY, sequence=7, client_time_ms=123.5)
        frame = (await client.get("frame")).head
    assert (frame["frame"], frame["sequence"], frame["client_time_ms"]) == (1, 7, 123.5)


async def test_a_world_that_somebody_looks_at_does_not_expire(
    gateway: Gateway, session: str, control: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "TOUCH_S", 0.05)
    record = keys.record(session)
    client = Client(gateway, session)
    await client.get("hello")
    looking = asyncio.create_task(client.rest())
    async with asyncio.timeout(60):
        for _ in range(3):
            await control.redis.hset(record, "expires_s", 1)
            while float(await control.redis.hget(record, "expires_s")) < time.time() + 1000:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await control.sessions.delete(session)
        with pytest.raises(SessionDeleted):
            await looking


async def test_a_full_redis_does_not_end_who_looks(
    gateway: Gateway,
    session: str,
    control: ControlPlane,
    monkeypatch: pytest.MonkeyPatch,
    logs_of: Callable[..., list[Any]],
) -> None:
    monkeypatch.setattr(keys, "TOUCH_S", 0.05)
    logs = logs_of(sessions)
    await control.redis.config_set("maxmemory", 1)
    try:
        client = Client(gateway, session)
        await client.get("hello")
        async with asyncio.timeout(60):
            while len(logs) < 2:  # noqa: ASYNC110 it tries again
                await asyncio.sleep(0.01)
        client.send(type="ping")
        await client.get("pong")
        await client.close()
    finally:
        await control.redis.config_set("maxmemory", 0)
    assert logs[0]["event"] == "session not kept alive" and "maxmemory" in logs[0]["error"]


async def test_frames_of_a_branch_that_never_began_end_the_stream(
    gateway: Gateway, session: str, control: ControlPlane
) -> None:
    """Instead of looking for them again and again."""
    stray = frame(0, branch=99)
    event = {"meta": stray.text, "image": stray.image}
    await control.redis.xadd(keys.frames(session), event, id=event_id(1, 0))
    await control.redis.hset(keys.record(session), "next_frame", 1)
    with pytest.raises(SegmentCorrupt, match="of branch 99, and the session has come to branch 1"):
        await Client(gateway, session, after=-1).rest()


async def test_the_newest_live_pose_wins(client: Client, settings: Settings) -> None:
    await client.get("hello")
    for sequence in range(20):
        client.send(type="pose", matrix=IDENTITY, sequence=sequence)
    client.send(type="ping", client_time_ms=1)
    await client.get("pong")  # all are in the log
    async with working(FakeWorker(settings)):
        await client.get("frame")
        assert (await client.get("frame")).head["sequence"] == 19


async def test_a_path_is_rendered_whole_and_its_end_is_told(
    client: Client, settings: Settings
) -> None:
    client.send(type="path", poses=[{"matrix": IDENTITY}] * 5, client_time_ms=9)
    accepted = (await client.get("accepted")).head
    assert accepted["total"] == 5
    async with working(FakeWorker(settings)):
        numbers = [(await client.get("frame")).head for _ in range(6)]
        progress = (await client.get("progress")).head
    assert [head["frame"] for head in numbers] == list(range(6))
    assert {head["client_time_ms"] for head in numbers[1:]} == {9}
    assert (progress["id"], progress["state"]) == (accepted["id"], "done")


async def test_actions_and_cancel(client: Client, settings: Settings) -> None:
    client.send(type="action", actions=[{"forward_m": 20}])
    accepted = (await client.get("accepted")).head
    async with working(FakeWorker(settings, step_s=0.01)):
        while (await client.get("frame")).head["frame"] < 3:
            pass
        client.send(type="cancel", id=accepted["id"])
        progress = (await client.get("progress")).head
        assert progress["cancel_requested"] or progress["state"] == "cancelled"
        while progress["state"] != "cancelled":
            progress = (await client.get("progress")).head
    assert 3 <= progress["done"] < 200


async def test_a_failure_is_told(client: Client, settings: Settings) -> None:
    far = [*IDENTITY[:3], 9000.0, *IDENTITY[4:]]
    client.send(type="path", poses=[{"matrix": far}])
    async with working(FakeWorker(settings)):
        progress = (await client.get("progress")).head
    assert (progress["state"], progress["error"]["detail"]) == ("failed", "too far away")


async def test_bad_messages_are_answered_and_the_stream_goes_on(
    client: Client, settings: Settings
) -> None:
    client.send(type="pose", matrix=[2.0, *IDENTITY[1:]])
    error = (await client.get("error")).head
    assert error["problem"] == "urn:mirage:problem:invalid-request"
    assert error["errors"][0]["field"] == "pose.matrix"
    client.fail(InvalidRequest("no JSON"))
    assert (await client.get("error")).head["detail"] == "no JSON"
    client.send(type="cancel", id="r_unknown")
    assert (await client.get("error")).head["status"] == 404
    client.send(type="ping")
    await client.get("pong")


async def test_a_client_that_comes_back_misses_nothing_and_sees_nothing_twice(
    gateway: Gateway, session: str, settings: Settings
) -> None:
    first = Client(gateway, session)
    first.send(type="path", poses=[{"matrix": IDENTITY}] * 30)
    async with working(FakeWorker(settings, step_s=0.002)):
        seen = [(await first.get("frame")).head["frame"] for _ in range(9)]
        await first.close()
        second = Client(gateway, session, after=seen[-1])
        seen += [(await second.get("frame")).head["frame"] for _ in range(22)]
        await second.close()
    assert seen == list(range(31))


async def test_a_stream_that_ends_hands_out_no_more_than_what_lay_ready(
    gateway: Gateway, session: str, settings: Settings
) -> None:
    """However slowly its client reads: a key was revoked, or the gateway stops."""
    client = Client(gateway, session)
    client.send(type="path", poses=[{"matrix": IDENTITY}] * 60)
    async with working(FakeWorker(settings)):
        await client.get("frame")
        async with asyncio.timeout(60):
            while (await gateway.control.sessions.get(session)).next_frame < 61:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    gateway.closing.set()
    rest = await client.rest(pause_s=0.02)
    assert rest[-1].WhichOneof("message") == "goodbye"
    assert len(rest) <= 1 + OUTBOX_LENGTH + 1  # one may go before the stream hears of it


async def test_without_after_only_new_frames_come(
    gateway: Gateway, session: str, settings: Settings
) -> None:
    async with working(FakeWorker(settings)):
        first = Client(gateway, session)
        await first.get("frame")
        second = Client(gateway, session)
        assert (await second.get("hello")).head["after"] == 0
        second.send(type="pose", matrix=IDENTITY)
        for client in (second, first):  # everybody who watches sees it
            assert (await client.get("frame")).head["frame"] == 1
            await client.close()


async def test_the_stream_ends_when_the_client_leaves(client: Client) -> None:
    await client.get("hello")
    client.leave()
    await client.rest()
    running = {str(task.get_coro()) for task in asyncio.all_tasks()}
    ours = ("listen", "follow", "feed_paths", "move_cameras", "Event.wait")
    assert not [name for name in running if name.split()[2].startswith(ours)]


async def test_a_deleted_session_ends_the_stream(
    client: Client, control: ControlPlane, session: str
) -> None:
    await client.get("hello")
    await control.sessions.delete(session)
    with pytest.raises(SessionDeleted):
        await client.rest()


async def test_an_unknown_session_has_no_stream(gateway: Gateway) -> None:
    with pytest.raises(UnknownSession):
        await Client(gateway, "s1").get("hello")
