"""The stream over a real WebSocket: JSON and pictures, close codes, a client that vanishes."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import numpy as np
import pytest
import websockets
from fake_worker import FakeWorker, working
from uploads_made import png

from service.poses import flat
from service.settings import Settings
from service.video import decode_frame
from service.wire import world_pb2 as pb
from service.ws import opening_of

IDENTITY = flat(np.eye(4))


@pytest.fixture
async def session(server_url: str) -> str:
    async with httpx.AsyncClient(base_url=server_url) as client:
        return str((await client.post("/v1/sessions", files={"image": png()})).json()["id"])


def address(server_url: str, session: str, query: str = "") -> str:
    return f"{server_url.replace('http', 'ws')}/v1/sessions/{session}/stream{query}"


async def message(socket: websockets.ClientConnection, kind: str) -> dict[str, Any]:
    async with asyncio.timeout(60):
        while True:
            data = await socket.recv()
            if isinstance(data, str) and (head := json.loads(data))["type"] == kind:
                return dict(head)


async def test_each_frame_is_its_head_and_then_its_picture(
    server_url: str, session: str, settings: Settings
) -> None:
    async with working(FakeWorker(settings)):
        async with websockets.connect(address(server_url, session)) as socket:
            await message(socket, "frame")
            assert decode_frame(await socket.recv())[0, 0, 0] == 0
            pose = {"type": "pose", "matrix": IDENTITY, "client_time_ms": 5}
            await socket.send(json.dumps(pose))
            head = await message(socket, "frame")
            picture = await socket.recv()
    assert isinstance(picture, bytes)
    assert decode_frame(picture)[0, 0, 0] == 1
    assert (head["frame"], head["client_time_ms"], head["media_type"]) == (1, 5, "image/webp")
    assert head["coverage"] == 0.5 and head["timings_ms"] and head["num_bytes"] == 10_000


async def test_what_cannot_be_read_is_answered(server_url: str, session: str) -> None:
    async with websockets.connect(address(server_url, session)) as socket:
        await socket.send("{")
        assert "JSON" in (await message(socket, "error"))["errors"][0]["allowed"]
        await socket.send('{"type":"pose","matrix":[1],"speed":2}')
        fields = {one["field"] for one in (await message(socket, "error"))["errors"]}
        assert fields == {"pose.speed"}
        await socket.send(b"\0\1")
        assert (await message(socket, "error"))["errors"][0]["allowed"] == "JSON text"
        await socket.send('{"type":"ping","client_time_ms":4}')
        assert (await message(socket, "pong"))["client_time_ms"] == 4


async def test_close_codes_say_what_happened(server_url: str, session: str) -> None:
    async with websockets.connect(address(server_url, "s1")) as socket:
        assert (await message(socket, "error"))["status"] == 404
        with pytest.raises(websockets.ConnectionClosed) as closed:
            await socket.recv()
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, "s1" in closed.value.rcvd.reason) == (4404, True)

    async with websockets.connect(address(server_url, session)) as socket:
        await message(socket, "hello")
        async with httpx.AsyncClient(base_url=server_url) as client:
            await client.delete(f"/v1/sessions/{session}")
        with pytest.raises(websockets.ConnectionClosed) as closed:
            await message(socket, "never")
    assert closed.value.rcvd is not None and closed.value.rcvd.code == 4410


@pytest.mark.parametrize(
    "query",
    [
        "?after=x",
        "?after=1&after=5",
        "?format=gif",
        "?cameras=0,99",
        "?speed=2",
        "?protocol=0",
        "?protocol=new",
    ],
)
async def test_a_bad_query_is_refused(server_url: str, session: str, query: str) -> None:
    async with websockets.connect(address(server_url, session, query)) as socket:
        error = await message(socket, "error")
        assert error["errors"][0]["field"].partition("[")[0] in query
        with pytest.raises(websockets.ConnectionClosed) as closed:
            await socket.recv()
    assert closed.value.rcvd is not None and closed.value.rcvd.code == 4422


def test_lists_are_repeated_or_have_commas() -> None:
    query = [("cameras", "0,2"), ("cameras", "3"), ("ticket", "a"), ("ticket", "b")]
    assert opening_of("s1", query).cameras == [0, 2, 3]


async def test_protobuf_is_chosen_by_subprotocol(
    server_url: str, session: str, settings: Settings
) -> None:
    url = address(server_url, session, "?after=-1")
    spoken = [websockets.Subprotocol("mirage.v1.proto")]
    async with (
        working(FakeWorker(settings)),
        websockets.connect(url, subprotocols=spoken) as socket,
    ):
        assert socket.subprotocol == "mirage.v1.proto"
        pose = pb.LivePose(pose=pb.Pose(matrix=IDENTITY))
        frames = []
        while len(frames) < 2:
            said = pb.ServerMessage.FromString(bytes(await socket.recv()))
            if said.HasField("frame"):
                frames.append(said.frame)
                ask = pb.ClientMessage(sequence=5, pose=pose)
                await socket.send(ask.SerializeToString())
        assert [decode_frame(frame.image)[0, 0, 0] for frame in frames] == [0, 1]
        assert frames[1].sequence == 5
        await socket.send("text")
        while not (said := pb.ServerMessage.FromString(bytes(await socket.recv()))).HasField(
            "error"
        ):
            pass
        assert said.error.errors[0].allowed == "binary messages"


async def test_a_client_that_vanishes_leaves_nothing(
    server_url: str, session: str, settings: Settings
) -> None:
    async with httpx.AsyncClient(base_url=server_url, timeout=60) as client:

        async def active() -> str:
            text = (await client.get("/metrics")).text
            return next(line for line in text.splitlines() if line.startswith("mirage_streams"))

        async with working(FakeWorker(settings, step_s=0.002)):
            for _ in range(5):
                socket = await websockets.connect(address(server_url, session))
                action = {"type": "action", "actions": [{"forward_m": 2}]}
                await socket.send(json.dumps(action))
                await message(socket, "frame")
                assert await active() == "mirage_streams_active 1.0"
                socket.transport.abort()
                async with asyncio.timeout(60):
                    while await active() != "mirage_streams_active 0.0":  # noqa: ASYNC110
                        await asyncio.sleep(0.02)
