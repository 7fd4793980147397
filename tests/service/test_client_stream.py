"""The SDK's stream when something stands in its way: refusals, outages, other walkers."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
import websockets
from fake_worker import FakeWorker, working
from uploads_made import png
from uvicorn_server import serving

from service.app import create_app
from service.auth.keyring import Keyring
from service.auth.principal import KEY_SCOPES
from service.client import (
    AsyncGeneration,
    AsyncMirage,
    AsyncWorld,
    Frame,
    Generation,
    LiveStream,
    Mirage,
    ServiceError,
    Stream,
    World,
    stream,
)
from service.client import outage as outages
from service.control import keys
from service.control.plane import ControlPlane
from service.control.requests import View
from service.local.embedded import EmbeddedValkey, free_port
from service.poses import flat
from service.server import PROTOCOLS
from service.settings import Settings
from service.wire import world_pb2 as pb

HERE = np.eye(4)


async def new_key(control: ControlPlane) -> str:
    return (await Keyring(control.redis, control.kept).create("ann", KEY_SCOPES))[1]


@asynccontextmanager
async def gateway_at(settings: Settings, samples: Path) -> AsyncIterator[str]:
    port = free_port()
    app = create_app(settings, samples)
    config = uvicorn.Config(
        app, port=port, log_config=None, timeout_graceful_shutdown=1, **PROTOCOLS
    )
    async with serving(uvicorn.Server(config)):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
async def keyed(settings: Settings, control: ControlPlane, samples: Path) -> AsyncIterator[str]:
    """A gateway that requires keys, and lets each owner have one stream."""
    strict = settings.model_copy(update={"require_keys": True, "max_streams_per_key": 1})
    async with gateway_at(strict, samples) as url:
        yield url


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not is_so():  # noqa: ASYNC110 - of a client that tells nobody
            await asyncio.sleep(0.01)


async def first(lines: Stream) -> None:
    async with lines:
        async for _ in lines.messages():
            return


async def refusal_of(url: str, key: str | None, session: str) -> ServiceError:
    async with AsyncMirage(url, key) as mirage:
        address = f"{url.replace('http', 'ws')}/v1/sessions/{session}/stream"
        with pytest.raises(ServiceError) as caught:
            async with asyncio.timeout(60):
                await first(Stream(address, mirage.headers, None, {}))
    return caught.value


async def test_what_the_gate_refuses_is_a_service_error(keyed: str, control: ControlPlane) -> None:
    key, revoked = await new_key(control), await new_key(control)
    await Keyring(control.redis, control.kept).revoke(revoked.split("_")[1])
    async with AsyncMirage(keyed, key) as mirage:
        session = (await mirage.create(png())).id
    for credential, world, kind in (
        (revoked, session, "unauthenticated"),
        (key, "s1", "unknown-session"),
        (key, "s1/elsewhere", "not-found"),
    ):
        assert (await refusal_of(keyed, credential, world)).kind == kind


async def test_what_the_gate_refuses_is_a_service_error_without_await(
    keyed: str, control: ControlPlane
) -> None:
    key = await new_key(control)

    def refused() -> str:
        with Mirage(keyed, key) as mirage:
            world = mirage.create(png())
            mirage._mirage.headers.pop("Authorization")  # as if it were revoked by now
            with pytest.raises(ServiceError) as caught, world.stream() as live:
                next(live.messages())
            return caught.value.kind

    assert await asyncio.wait_for(asyncio.to_thread(refused), 60) == "unauthenticated"


async def test_too_many_streams_are_waited_for(keyed: str, control: ControlPlane) -> None:
    async with AsyncMirage(keyed, await new_key(control)) as mirage, asyncio.timeout(60):
        world = await mirage.create(png())
        async with world.stream() as one, world.stream() as other:
            assert await anext(one.messages())
            waiting = asyncio.create_task(anext(other.messages()))
            await until(lambda: other.num_connections > 2)
            await one.__aexit__()
            assert (await waiting)["type"] == "hello"  # type: ignore[call-overload, index]


async def test_too_many_streams_are_refused_in_the_end(
    keyed: str, control: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outages, "GIVE_UP_S", 1.0)
    key = await new_key(control)
    async with AsyncMirage(keyed, key) as mirage:
        world = await mirage.create(png())
        async with world.stream() as one:
            assert await anext(one.messages())
            assert (await refusal_of(keyed, key, world.id)).kind == "too-many-requests"


async def test_a_stream_outlives_redis_where_keys_are_required(
    settings: Settings, samples: Path, tmp_path: Path
) -> None:
    port = free_port()
    valkey = EmbeddedValkey(tmp_path, port)
    await valkey.start()
    settings = settings.model_copy(update={"redis_url": valkey.url, "require_keys": True})
    control = await ControlPlane.open(settings)
    key = await new_key(control)
    await control.close()
    seen: list[int] = []

    async def follow(live: Stream) -> None:
        async for frame in live.frames():
            seen.append(frame.number)

    async with gateway_at(settings, samples) as url, AsyncMirage(url, key) as mirage:
        world = await mirage.create(png())
        async with world.stream(after=-1) as live:
            following = asyncio.create_task(follow(live))
            async with working(FakeWorker(settings)):
                await until(lambda: seen == [0] or following.done())
            assert valkey.pid is not None
            os.kill(valkey.pid, signal.SIGKILL)
            await valkey.stop()
            await until(lambda: live.num_connections > 3 or following.done())
            assert not following.done()
            valkey = EmbeddedValkey(tmp_path, port)
            await valkey.start()
            async with working(FakeWorker(settings)):
                await world.generate(poses=[HERE] * 3)
                await until(lambda: len(seen) == 4 or following.done())
        await following
    await valkey.stop()
    assert seen == [0, 1, 2, 3]


class Proxy:
    """What stands before the service and says its own."""

    def __init__(self, *said: str | bytes, code: int = 1000, status: int = 101) -> None:
        self._said, self._code, self._status = said, code, status

    async def __aenter__(self) -> str:
        refuse = self._refuse if self._status != 101 else None
        self._server = await websockets.serve(
            self._answer, "127.0.0.1", free_port(), process_request=refuse
        )
        return f"ws://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/"  # type: ignore[index]

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _answer(self, socket: websockets.ServerConnection) -> None:
        for said in self._said:
            await socket.send(said)
        await socket.close(self._code, "as the proxy likes")

    def _refuse(self, socket: websockets.ServerConnection, _: object) -> Any:
        return socket.respond(self._status, '{"detail": "not from here"}')


@pytest.mark.parametrize(
    ("proxy", "status", "detail"),
    [
        (Proxy('{"status": 403, "detail": "no"}', code=1008), 403, "no"),
        (Proxy("go away", code=4403), 0, "go away"),
        (Proxy(code=4403), 403, "as the proxy likes"),
        (Proxy(code=1009), 413, "as the proxy likes"),
        (Proxy(status=403), 403, "not from here"),
    ],
)
async def test_what_a_proxy_refuses_is_a_service_error(
    proxy: Proxy, status: int, detail: str
) -> None:
    async with proxy as url, asyncio.timeout(60):
        with pytest.raises(ServiceError, match=detail) as caught:
            await first(Stream(url, {}, None, {}))
    assert caught.value.status == status


async def test_a_stream_that_was_left_is_over() -> None:
    async with Proxy() as url, asyncio.timeout(60), Stream(url, {}, None, {}) as live:
        assert [said async for said in live.messages()] == [] and live.num_connections == 1


async def test_pauses_grow_while_no_stream_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outages, "GIVE_UP_S", 1.0)
    hello = pb.ServerMessage(hello=pb.Hello()).SerializeToString()
    async with Proxy(hello, code=1012) as url, asyncio.timeout(60), Stream(url, {}, None, {}) as on:
        with pytest.raises(websockets.ConnectionClosed):
            async for _ in on.messages():
                pass
        assert on.num_connections == 3


async def test_a_path_at_a_rate_ends_with_its_connection_and_says_so(
    server_url: str, settings: Settings
) -> None:
    async with AsyncMirage(server_url) as mirage, working(FakeWorker(settings)):
        world = await mirage.create(png())
        await world.opened()
        async with asyncio.timeout(60), world.stream(frames_per_s=20) as live:
            sequence, numbers = await live.path(poses=[HERE] * 200), []
            with pytest.raises(ServiceError, match=r"path r_\w+ ended with it: 3 of 200") as caught:
                async for frame in live.frames():
                    numbers.append(frame.number)
                    if len(numbers) == 3:
                        assert live._socket is not None
                        live._socket.transport.abort()
            assert caught.value.problem["reply_to"] == sequence and numbers == [1, 2, 3]
            assert (await anext(live.frames())).number == 4  # a worker had been given more
            await live.path(poses=[HERE])
            async for said in live.messages():
                if not isinstance(said, Frame) and said["type"] == "progress":
                    break


def walked(total: int, rate: float) -> tuple[tuple[bytes, ...], dict[str, float]]:
    """A server's words about a path of which it sends one frame, and the stream's options."""
    accepted = pb.Generation(id="r_1", kind="generate", total=total)
    said = (
        pb.ServerMessage(hello=pb.Hello()),
        pb.ServerMessage(reply_to=1, accepted=accepted),
        pb.ServerMessage(frame=pb.Frame(frame=7, request_id="r_1")),
    )
    return tuple(one.SerializeToString() for one in said), {"frames_per_s": rate}


@pytest.mark.parametrize(
    ("said", "options", "told"),
    [
        (*walked(2, 9.0), ("error", 1)),
        (*walked(1, 9.0), ("progress", 0)),
        (*walked(2, 0), None),  # all of it is made
        (walked(2, 0)[0][:1], {}, ("error", 1)),
    ],
    ids=["broken off", "whole", "without a rate", "not accepted"],
)
async def test_what_a_new_connection_says_of_an_old_one_s_path(
    said: tuple[bytes, ...], options: dict[str, float], told: tuple[str, int] | None
) -> None:
    async with (
        Proxy(*said, code=1012) as url,
        asyncio.timeout(60),
        Stream(url, {}, None, options) as live,
    ):
        live._sequence = 0
        await live.path(poses=[HERE])
        found = []
        async for one in live.messages():
            if live.num_connections == 3:
                break
            if not isinstance(one, Frame) and one["type"] not in ("hello", "accepted"):
                found.append((one["type"], one["reply_to"]))
    assert found == ([] if told is None else [told])


async def test_who_leaves_during_an_outage_opens_no_stream(server_url: str) -> None:
    async with AsyncMirage(server_url) as mirage:
        live = (await mirage.create(png())).stream()
        await live.__aenter__()
        connecting, may_connect, connect = asyncio.Event(), asyncio.Event(), live._connect

        async def slowly() -> None:
            connecting.set()
            await may_connect.wait()
            await connect()

        live._connect = slowly  # type: ignore[method-assign]
        reading = asyncio.create_task(_all_of(live))
        assert live._socket is not None
        live._socket.transport.abort()
        async with asyncio.timeout(60):
            await connecting.wait()
            await live.__aexit__()
            may_connect.set()
            await reading
        assert live._socket.state is websockets.State.CLOSED


async def _all_of(live: Stream) -> None:
    async for _ in live.messages():
        pass


async def ones(count: int) -> AsyncIterator[np.ndarray[Any, Any]]:
    for _ in range(count):
        yield HERE


async def test_a_walk_sends_again_what_the_connection_lost(
    server_url: str, settings: Settings
) -> None:
    async with AsyncMirage(server_url) as mirage, working(FakeWorker(settings)):
        world = await mirage.create(png())
        await world.opened()
        async with asyncio.timeout(60), world.stream(after=-1) as live:
            reds = []
            async for picture in live.walk(ones(3)):
                reds.append(int(picture[0, 0, 0]))
                assert live._socket is not None
                live._socket.transport.abort()
            assert live.num_connections == 3
    assert reds == [1, 2, 3]


@asynccontextmanager
async def replaced_look(
    url: str, settings: Settings, control: ControlPlane
) -> AsyncIterator[asyncio.Task[Frame]]:
    """A look whose pose waited, and another client's took its place; now there is a worker."""
    async with AsyncMirage(url) as mirage, asyncio.timeout(60):
        world = await mirage.create(png())
        async with world.stream(after=-1) as live:
            looking = asyncio.create_task(live.look(HERE))
            # until the picture and the pose wait
            while await control.redis.xlen(keys.log(world.id)) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            await control.requests.append_live(world.id, View(flat(HERE), 0, 1))
            async with working(FakeWorker(settings)):
                yield looking


async def test_a_look_is_asked_for_again_when_another_client_replaced_it(
    server_url: str, settings: Settings, control: ControlPlane
) -> None:
    async with replaced_look(server_url, settings, control) as looking:
        assert (await looking).number == 2


async def test_a_camera_that_others_keep_moving_is_no_place_to_look_from(
    server_url: str, settings: Settings, control: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "CONTENDED_S", 0.0)
    async with replaced_look(server_url, settings, control) as looking:
        with pytest.raises(ServiceError, match="camera 0 is moved by others") as caught:
            await looking
    assert caught.value.status == 409


async def test_what_a_stream_does_not_show_is_not_waited_for(server_url: str) -> None:
    async with AsyncMirage(server_url) as mirage:
        async with (await mirage.create(png())).stream(cameras=[1, 2]) as live:
            with pytest.raises(ValueError, match=r"camera: 0 is none .* \(1,2\)"):
                await live.look(HERE)


async def test_a_live_walk_without_await(server_url: str, settings: Settings) -> None:
    def walk() -> list[int]:
        with Mirage(server_url) as mirage, mirage.create(png()).stream(after=-1) as live:
            return [int(picture[0, 0, 0]) for picture in live.walk([HERE] * 3)]

    async with working(FakeWorker(settings)):
        assert await asyncio.wait_for(asyncio.to_thread(walk), 60) == [1, 2, 3]


@pytest.mark.parametrize(
    ("with_await", "without"),
    [
        (AsyncMirage, Mirage),
        (AsyncWorld, World),
        (AsyncGeneration, Generation),
        (Stream, LiveStream),
    ],
)
def test_without_await_it_is_the_same(with_await: type, without: type) -> None:
    def calls(kind: type) -> set[str]:
        return {name for name in vars(kind) if not name.startswith("_")}

    assert calls(with_await) - calls(without) == set()
