"""The SDK against a gateway on a real port."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeVar

import av
import httpx
import numpy as np
import pytest
from fake_worker import FakeWorker, working
from PIL import Image
from uploads_made import encoded, png

from service.client import AsyncMirage, AsyncWorld, Frame, Mirage, ServiceError, save_mp4
from service.client.options import message_of
from service.client.portal import Portal, PortalClosed
from service.rest import sessions
from service.settings import Settings

T = TypeVar("T")


async def aside(work: Callable[[], T]) -> T:
    """The sync SDK in a thread, as the server lives in this loop."""
    return await asyncio.wait_for(asyncio.to_thread(work), 60)


async def test_a_walk_from_a_file_to_a_video(
    server_url: str, settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "photo.png").write_bytes(png())

    def walk() -> None:
        with Mirage(server_url) as mirage:
            world = mirage.create(tmp_path / "photo.png", fov_deg=70, seed=4)
            assert world.info["seed"] == 4
            assert [frame.number for frame in world.opened().frames()] == [0]
            path = world.generate(actions=[{"forward_m": 0.5}])
            frames = list(path.frames())
            assert [frame.number for frame in frames] == [1, 2, 3, 4, 5]
            assert frames[4].pose[2, 3] == pytest.approx(0.5)
            assert frames[4].pixels()[0, 0].tolist() == [5, 80, 160]
            assert frames[4].coverage == 0.5
            with av.open(io.BytesIO(path.video())) as container:
                assert len(list(container.decode(video=0))) == 5
            assert world.memory()["num_points"] == 600
            assert world.refresh()["num_frames"] == 6
            assert [other.id for other in mirage.worlds()] == [world.id]
            assert [frame.number for frame in mirage.world(world.id).frames(wait_s=0)] == [
                *range(6)
            ]
            world.delete()
            assert list(mirage.worlds()) == []

    async with working(FakeWorker(settings)):
        await aside(walk)


async def test_an_observation_may_bring_a_mask(server_url: str, settings: Settings) -> None:
    def seen() -> None:
        with Mirage(server_url) as mirage:
            world = mirage.create(png())
            nothing = encoded(Image.new("L", (96, 64)), "PNG")
            assert world.observe(png(), np.eye(4), mask=nothing).wait()["state"] == "done"
            with pytest.raises(ServiceError, match=r"mask: .*PNG"):
                world.observe(png(), np.eye(4), mask=b"hello")

    async with working(FakeWorker(settings)):
        await aside(seen)


async def test_errors_carry_the_problem(server_url: str, settings: Settings) -> None:
    def refused() -> None:
        with Mirage(server_url) as mirage:
            with pytest.raises(ServiceError, match=r"5 bytes.*image: a complete PNG") as caught:
                mirage.create(b"hello")
            assert caught.value.problem["status"] == 422
            with pytest.raises(ServiceError, match="no session"):
                mirage.world("s1")

    def failing() -> None:
        with Mirage(server_url) as mirage:
            pose = np.eye(4)
            pose[0, 3] = 9000
            with pytest.raises(ServiceError, match="too far away"):
                mirage.create(png()).generate(poses=[pose]).wait()

    await aside(refused)
    async with working(FakeWorker(settings)):
        await aside(failing)


async def test_cancel(server_url: str, settings: Settings) -> None:
    def walk() -> dict[str, Any]:
        with Mirage(server_url) as mirage:
            path = mirage.create(png()).generate(poses=[np.eye(4)] * 300)
            for frame in path.frames():
                if frame.number == 5:
                    path.cancel()
            return path.info

    async with working(FakeWorker(settings, step_s=0.005)):
        info = await aside(walk)
    assert info["state"] == "cancelled" and info["done"] < 300


@pytest.mark.parametrize(("verb", "ask"), [("fork", ()), ("rewind", (0,)), ("snapshot", ("a",))])
async def test_who_waits_for_what_is_cancelled_is_told(verb: str, ask: tuple[Any, ...]) -> None:
    def cancelled(_: httpx.Request) -> httpx.Response:
        progress = {"id": "r_1", "kind": verb, "state": "cancelled", "error": None, "result": None}
        return httpx.Response(202, json=progress)

    async with AsyncMirage("http://x", transport=httpx.MockTransport(cancelled)) as mirage:
        world = AsyncWorld(mirage, {"id": "s1"})
        with pytest.raises(ServiceError, match=f"The {verb} was cancelled") as told:
            await getattr(world, verb)(*ask)
    assert (told.value.status, told.value.kind) == (409, "conflict")


async def counted() -> AsyncIterator[int]:
    for number in range(100_000):
        await asyncio.sleep(0.001)
        yield number


def test_who_iterates_while_another_thread_closes_is_told() -> None:
    portal = Portal()
    items = portal.iterate(counted())
    assert next(items) == 0
    closing = threading.Timer(0.05, portal.close)
    closing.start()
    with pytest.raises(PortalClosed, match="open another one"):
        for _ in items:
            pass
    closing.join()


def test_what_is_closed_says_so() -> None:
    mirage, portal = Mirage("http://127.0.0.1:1"), Portal()
    begun = portal.iterate(counted())
    assert next(begun) == 0
    for one in (mirage, portal, mirage, portal):  # once is enough, and twice is no harm
        one.close()
    begun.close()
    with pytest.raises(PortalClosed):
        next(portal.iterate(counted()))
    with pytest.raises(PortalClosed):
        mirage.world("s1")


class Flaky(httpx.AsyncBaseTransport):
    """Does the request, then loses every first answer."""

    def __init__(self) -> None:
        self._real, self._calls = httpx.AsyncHTTPTransport(), 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self._calls += 1
        response = await self._real.handle_async_request(request)
        await response.aread()
        if self._calls % 2:
            raise httpx.ReadError("the connection was lost")
        return response

    async def aclose(self) -> None:
        await self._real.aclose()


async def test_a_lost_answer_is_asked_for_again_and_done_once(server_url: str) -> None:
    def create() -> int:
        with Mirage(server_url, transport=Flaky()) as mirage:
            mirage.create(png())
            return len(list(mirage.worlds()))

    assert await aside(create) == 1


class Answers(httpx.AsyncBaseTransport):
    """Gives these answers, one after the other; an exception is raised."""

    def __init__(self, *answers: httpx.Response | httpx.TransportError) -> None:
        self._answers = list(answers)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        answer = self._answers.pop(0)
        if isinstance(answer, httpx.TransportError):
            raise answer
        return answer


class Impatient(httpx.AsyncBaseTransport):
    """Loses the connection of the first call before the service has done what was asked."""

    def __init__(self, begun: asyncio.Event, may_end: asyncio.Event) -> None:
        self._real, self._first = httpx.AsyncHTTPTransport(), True
        self._begun, self._may_end, self.refused = begun, may_end, 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if self._first:
            self._first = False
            self._lost = asyncio.create_task(self._real.handle_async_request(request))
            await self._begun.wait()
            raise httpx.ReadError("the connection was lost")
        response = await self._real.handle_async_request(request)
        if response.status_code == 409:
            self.refused += 1
            self._may_end.set()
        return response

    async def aclose(self) -> None:
        await (await self._lost).aclose()
        await self._real.aclose()


async def test_a_lost_call_that_still_runs_is_waited_for(
    server_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_end, observe = asyncio.Event(), asyncio.Event(), sessions.observe

    async def slow(*args: Any) -> Any:
        begun.set()
        await may_end.wait()
        return await observe(*args)

    monkeypatch.setattr(sessions, "observe", slow)
    transport = Impatient(begun, may_end)
    async with asyncio.timeout(60), AsyncMirage(server_url, transport=transport) as mirage:
        world = await mirage.create(png())
        assert [one.id async for one in mirage.worlds()] == [world.id]
    assert transport.refused >= 1


async def test_a_conflict_is_final_unless_a_call_was_lost() -> None:
    conflict = httpx.Response(409, json={"detail": "no"}, headers={"Retry-After": "1"})
    async with AsyncMirage("http://nowhere", transport=Answers(conflict)) as mirage:
        with pytest.raises(ServiceError) as caught:
            await mirage.json("POST", "/v1/sessions")
    assert caught.value.status == 409


async def test_what_a_service_without_its_redis_may_still_hold_is_waited_for() -> None:
    away = httpx.Response(503, json={"detail": "away"}, headers={"Retry-After": "0"})
    still_runs = httpx.Response(409, json={"detail": "runs"}, headers={"Retry-After": "0"})
    transport = Answers(away, still_runs, httpx.Response(201, json={"id": "s"}))
    async with AsyncMirage("http://nowhere", transport=transport) as mirage:
        assert await mirage.json("POST", "/v1/sessions") == {"id": "s"}


@pytest.mark.parametrize("asked", ["Wed, 21 Oct 2015 07:28:00 GMT", "soon", "0.5", ""])
async def test_a_proxy_may_say_when_to_come_back_in_its_own_way(asked: str) -> None:
    away = httpx.Response(503, text="<html>", headers={"Retry-After": asked})
    transport = Answers(away, httpx.Response(200, json={"sessions": []}))
    async with AsyncMirage("http://nowhere", transport=transport) as mirage:
        assert await mirage.json("GET", "/v1/sessions") == {"sessions": []}


@pytest.mark.parametrize(
    "body",
    [
        '{"message": "no"}',
        '{"errors": [{"code": 1020, "message": "denied"}]}',
        "[]",
        "{",
        "<html>",
    ],
)
async def test_a_proxys_refusal_is_a_service_error(body: str) -> None:
    refused = httpx.Response(403, text=body, headers={"Content-Type": "application/json"})
    async with AsyncMirage("http://nowhere", transport=Answers(refused)) as mirage:
        with pytest.raises(ServiceError) as caught:
            await mirage.json("GET", "/v1/sessions")
    assert caught.value.status == 403


async def test_live_stream(server_url: str, settings: Settings) -> None:
    async with AsyncMirage(server_url) as mirage, working(FakeWorker(settings)):
        world = await mirage.create(png())
        async with world.stream(after=-1) as stream:
            numbers = []
            async for frame in stream.frames():
                numbers.append(frame.number)
                assert frame.pixels()[0, 0, 0] == frame.number
                if len(numbers) == 4:
                    break
                await stream.pose(np.eye(4), client_time_ms=1.0)
            assert numbers == [0, 1, 2, 3] and frame.client_time_ms == 1.0
            with pytest.raises(ServiceError, match="R\\^T R") as caught:
                await stream.pose(2 * np.diag([1, 1, 1, 0.5]))
                async for _ in stream.frames():
                    pass
            assert caught.value.kind == "invalid-request"


async def test_what_is_too_large_for_a_stream_is_refused_before_it_is_sent(server_url: str) -> None:
    async with AsyncMirage(server_url) as mirage:
        world = await mirage.create(png())
        async with world.stream() as stream:
            with pytest.raises(ValueError, match=r"observe: .* 1,000,000 bytes .* one 1,000,1"):
                await stream.observe(np.eye(4), bytes(1_000_000))
            await stream.ping()
            async for said in stream.messages():
                if not isinstance(said, Frame) and said["type"] == "pong":
                    break
            assert stream.num_connections == 1


async def test_what_a_stream_has_no_field_for_is_refused_before_it_is_sent(server_url: str) -> None:
    async with AsyncMirage(server_url) as mirage:
        async with (await mirage.create(png())).stream() as stream:
            for say, name in (
                (stream.pose(np.eye(4), axis="ros"), "axis"),
                (stream.look(np.eye(4), axis="ros"), "axis"),
                (stream.input(forwards=1.0), "forwards"),
                (stream.path(actions=[{"forward_m": 1.0, "yaw": 30}]), "yaw"),
                (stream.observe(np.eye(4), png(), intrinsics={"f": 1.0}), "f"),
            ):
                with pytest.raises(TypeError, match=f"there is no option '{name}'; there are "):
                    await say
            assert await stream.pose(np.eye(4), axes="ros", camera=1, client_time_ms=2.0)


@pytest.mark.parametrize(
    ("kind", "values", "told"),
    [
        ("pose", {"axes": "blender"}, "axes: one of opencv, opengl, unity, .*; got 'blender'"),
        ("pose", {"axes": 3}, "axes: one of opencv, .*; got 3"),
        ("pose", {"camera": -1}, "camera: a whole number from 0 on; got -1"),
        ("pose", {"client_time_ms": "now"}, "client_time_ms: a number; got 'now'"),
        ("path", {"actions": [{"forward_m": "2"}]}, "actions: forward_m: a number; got '2'"),
        ("path", {"actions": {"forward_m": 2}}, "actions: a list, each a dictionary; got {'for"),
        ("path", {"axes": "foo", "poses": [{"matrix": [1.0]}]}, "axes: one of opencv, .* 'foo'"),
        ("seek", {"frame": "4"}, "frame: a whole number; got '4'"),
        ("observe", {"image": "photo.jpg"}, "image: bytes; got 'photo.jpg'"),
        ("cancel", {"id": 4}, "id: text; got 4"),
        ("play", {"paused": "no"}, "paused: True or False; got 'no'"),
    ],
)
def test_what_a_field_of_a_stream_cannot_hold_is_refused_by_name(
    kind: str, values: dict[str, Any], told: str
) -> None:
    with pytest.raises(ValueError, match=f"^{kind}: {told}"):
        message_of(kind, 1, values)


@pytest.mark.parametrize(
    ("pose", "told"),
    [
        (np.eye(3), r"a 4 x 4 matrix.*\(3, 3\)"),
        (np.full((4, 4), np.nan), "finite numbers; got.*nan"),
    ],
)
async def test_what_is_no_pose_is_refused_before_it_is_sent(pose: Any, told: str) -> None:
    async with AsyncMirage("http://x") as mirage:
        world = AsyncWorld(mirage, {"id": "s1"})
        for ask in (world.generate(poses=[pose]), world.stream().pose(pose)):
            with pytest.raises(ValueError, match=f"^pose: {told}"):
                await ask


async def test_actions_that_are_no_list_are_refused_by_the_service(server_url: str) -> None:
    async with AsyncMirage(server_url) as mirage:
        world = await mirage.create(png())
        for actions in ({"forward_m": 1.0}, "forward 1"):
            with pytest.raises(ServiceError, match=r"actions\[0\]") as told:
                await world.generate(actions=actions)  # type: ignore[arg-type]
            assert told.value.kind == "invalid-request"


@pytest.mark.parametrize(
    ("verb", "ask", "body"),
    [
        ("fork", {"snapshot": "a"}, {"snapshot": "a"}),
        ("rewind", {"snapshot": "a"}, {"snapshot": "a"}),
        ("snapshot", {"name": "a", "replace": True}, {"name": "a", "replace": True}),
    ],
)
def test_worlds_go_back_to_snapshots(verb: str, ask: dict[str, Any], body: dict[str, Any]) -> None:
    def answered(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            assert json.loads(request.content) == body
        done = {"state": "done", "error": None, "result": {"session": "s2", "num_frames": 5}}
        return httpx.Response(200, json={"id": "s1", "kind": verb, **done})

    with Mirage("http://x", transport=httpx.MockTransport(answered)) as mirage:
        assert getattr(mirage.world("s1"), verb)(**ask)


async def test_walk_yields_pictures_and_saves_them(
    server_url: str, settings: Settings, tmp_path: Path
) -> None:
    def walk() -> None:
        with Mirage(server_url) as mirage:
            world = mirage.create(png())
            pictures = list(world.walk(actions=[{"forward_m": 0.3}]))
            assert [picture[0, 0, 0] for picture in pictures] == [1, 2, 3]
            assert pictures[0].shape == (32, 64, 3)
            save_mp4(tmp_path / "a.mp4", pictures)
            world.generate(actions=[{"forward_m": 0.2}]).save(tmp_path / "b.mp4", frames_per_s=5)

    async with working(FakeWorker(settings)):
        await aside(walk)
    for name, count in (("a.mp4", 3), ("b.mp4", 2)):
        with av.open(str(tmp_path / name)) as container:
            assert len(list(container.decode(video=0))) == count


async def test_a_live_stream_without_await(server_url: str, settings: Settings) -> None:
    def walk() -> list[int]:
        seen = []
        with Mirage(server_url) as mirage, mirage.create(png()).stream(after=-1) as stream:
            for frame in stream.frames():
                seen.append(frame.number)
                if frame.number == 3:
                    return seen
                stream.pose(np.eye(4))
        return seen

    async with working(FakeWorker(settings)):
        assert await aside(walk) == [0, 1, 2, 3]


async def test_a_broken_stream_goes_on_where_it_was(server_url: str, settings: Settings) -> None:
    async with AsyncMirage(server_url) as mirage, working(FakeWorker(settings, step_s=0.005)):
        world = await mirage.create(png())
        await world.generate(poses=[np.eye(4)] * 40)
        seen = []
        async with world.stream(after=-1) as stream:
            async for frame in stream.frames():
                seen.append(frame.number)
                if frame.number in (7, 20):
                    assert stream._socket is not None
                    stream._socket.transport.abort()
                if frame.number == 40:
                    break
            assert stream.num_connections == 3
    assert seen == list(range(41))


async def test_the_servers_decision_is_final(server_url: str) -> None:
    async with AsyncMirage(server_url) as mirage:
        world = await mirage.create(png())
        await world.delete()
        with pytest.raises(ServiceError) as caught:
            async with world.stream() as stream:
                async for _ in stream.frames():
                    pass
    assert caught.value.kind == "session-deleted"
