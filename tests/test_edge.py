"""The edge as clients meet it: one script over every transport, and gateways that come and go."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
import websockets
from grpc import aio
from PIL import Image

from bench.noop import noop_engine
from service.app import create_app
from service.client import AsyncMirage, AsyncWorld, ServiceError
from service.control.plane import ControlPlane
from service.local.embedded import free_port
from service.local.stack import environment
from service.poses import flat
from service.server import GatewayServer, listening
from service.settings import Settings
from service.tasks import end
from service.wire import world_pb2 as pb
from service.wire import world_pb2_grpc
from worker.serving.faults import NoFaults
from worker.serving.loop import Worker
from worker.serving.runner import Encoding, Runner

ROOT = Path(__file__).parent.parent
CONNECTS = int(os.environ.get("TEST_CONNECTS", "60"))  # 10,000 in full
SEED = 5


def photo() -> bytes:
    sink = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (8, 16, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((128, 64)).save(sink, "PNG")
    return sink.getvalue()


def place(x_m: float, z_m: float) -> np.ndarray:
    pose = np.eye(4)
    pose[0, 3], pose[2, 3] = x_m, z_m
    return pose


# what a client did: paths, one after the other; the last turns back to where it began
SCRIPT: list[list[np.ndarray]] = [
    [place(0.1 * i, 0.05 * i) for i in range(1, 6)],
    [place(0.5, 0.5)],
    [place(0.5 - 0.1 * i, 0.5 - 0.1 * i) for i in range(1, 6)],
]
NUM_FRAMES = 1 + sum(map(len, SCRIPT))


@pytest.fixture
async def address(settings: Settings, control: ControlPlane) -> AsyncIterator[tuple[str, str]]:
    """HTTP and gRPC of a gateway in this process, with a real worker whose model costs nothing."""
    ports = free_port(), free_port()
    app = create_app(settings.model_copy(update={"grpc_port": ports[1]}))
    config = uvicorn.Config(app, port=ports[0], log_config=None, ws="websockets-sansio")
    server = GatewayServer(config, app)
    engine = noop_engine(height=settings.frame_height, width=settings.frame_width)
    worker = Worker(control, settings, Runner(engine, Encoding()), NoFaults())
    tasks = [asyncio.create_task(server.serve()), asyncio.create_task(worker.run())]
    while not server.started:  # noqa: ASYNC110 - uvicorn has a flag, no event
        await asyncio.sleep(0.01)
    yield f"http://127.0.0.1:{ports[0]}", f"127.0.0.1:{ports[1]}"
    server.should_exit = True
    worker.stop()
    await asyncio.gather(*tasks)


async def create(url: str) -> str:
    async with httpx.AsyncClient(base_url=url) as http:
        form = {"seed": str(SEED), "fov_deg": "70"}
        answer = await http.post("/v1/sessions", files={"image": photo()}, data=form)
        return str(answer.json()["id"])


def matrices(path: list[np.ndarray]) -> list[dict[str, Any]]:
    return [{"matrix": flat(pose)} for pose in path]


async def over_rest(url: str, grpc: str) -> list[bytes]:
    session, frames = await create(url), []
    async with httpx.AsyncClient(base_url=f"{url}/v1/sessions/{session}") as http:
        for path in SCRIPT:
            await http.post("/generations", json={"poses": matrices(path)})
        while len(frames) < NUM_FRAMES:
            query = {"after": len(frames) - 1, "wait_s": 5}
            for frame in (await http.get("/frames", params=query)).json()["frames"]:
                frames.append((await http.get(f"/frames/{frame['frame']}")).content)
    return frames


async def over_websocket(url: str, grpc: str) -> list[bytes]:
    """As a person would: JSON."""
    session, frames = await create(url), []
    stream = f"{url.replace('http', 'ws')}/v1/sessions/{session}/stream?after=-1"
    async with websockets.connect(stream) as socket:
        for path in SCRIPT:
            await socket.send(json.dumps({"type": "path", "poses": matrices(path)}))
        while len(frames) < NUM_FRAMES:
            said = await socket.recv()
            if isinstance(said, bytes):
                frames.append(said)
    return frames


async def over_grpc(url: str, grpc: str) -> list[bytes]:
    async with aio.insecure_channel(grpc) as channel:
        world = world_pb2_grpc.WorldStub(channel)
        ask = pb.CreateSessionRequest(image=photo(), seed=SEED, fov_deg=70)
        session, frames = (await world.CreateSession(ask)).id, []
        call = world.Stream()
        await call.write(pb.ClientMessage(open=pb.Open(session=session, after=-1)))
        for path in SCRIPT:
            poses = [pb.Pose(matrix=flat(pose)) for pose in path]
            await call.write(pb.ClientMessage(path=pb.Path(poses=poses)))
        while len(frames) < NUM_FRAMES:
            said = await call.read()
            if said.HasField("frame"):
                frames.append(said.frame.image)
        call.cancel()
    return frames


async def over_sdk(url: str, grpc: str) -> list[bytes]:
    async with AsyncMirage(url) as mirage:
        world = await mirage.create(photo(), seed=SEED, fov_deg=70)
        for path in SCRIPT:
            await world.generate(poses=path)
        return [frame.image async for frame in _until_last(world)]


async def over_sdk_at_a_pace(url: str, grpc: str) -> list[bytes]:
    """The same paths, fed piece by piece."""
    async with AsyncMirage(url) as mirage:
        world, frames = await mirage.create(photo(), seed=SEED, fov_deg=70), []
        async with world.stream(after=-1, frames_per_s=200) as stream:
            for path in SCRIPT:
                await stream.path(poses=path)
            async for frame in stream.frames():
                frames.append(frame.image)
                if len(frames) == NUM_FRAMES:
                    return frames
    raise AssertionError("the stream ended")


async def _until_last(world: AsyncWorld) -> AsyncIterator[Any]:
    async for frame in world.frames():
        yield frame
        if frame.number == NUM_FRAMES - 1:
            return


async def test_one_script_gives_the_same_frames_over_every_transport(
    address: tuple[str, str],
) -> None:
    ways = (over_rest, over_websocket, over_grpc, over_sdk, over_sdk_at_a_pace)
    async with asyncio.timeout(60):
        seen = [await way(*address) for way in ways]
    assert len(set(seen[0])) > 5  # the script shows different things
    for way, frames in zip(ways, seen, strict=True):
        assert frames == seen[0], way.__name__


async def test_a_stream_rewinds_forks_and_observes(address: tuple[str, str]) -> None:
    async with AsyncMirage(address[0]) as mirage, asyncio.timeout(90):
        world = await mirage.create(photo(), seed=SEED)
        await (await world.generate(poses=SCRIPT[0])).wait()
        async with world.stream(after=-1, planes=["depth", "coverage"]) as stream:
            kinds: dict[str, Any] = {}

            async def until(kind: str) -> Any:
                async for said in stream.messages():
                    if not isinstance(said, dict):
                        kinds["frame"] = said
                        if kind == "frame":
                            return said
                    elif said["type"] == kind:
                        return said

            while (await until("frame")).number < 5:
                pass
            height, width = kinds["frame"].planes["coverage"].shape
            assert kinds["frame"].depth_m.shape == (height, width)
            assert np.isfinite(kinds["frame"].depth_m).all() and kinds["frame"].depth_m.max() > 0
            await stream.fork(frame=4)
            forked = await until("forked")
            await stream.seek(3)
            rewound = await until("rewound")
            assert rewound["branch"] == 2 and stream.after == rewound["frame"] <= 3
            await stream.observe(np.eye(4), photo())
            assert (await until("accepted"))["kind"] == "observe"
            assert (await until("progress"))["state"] == "done"
            await stream.pose(place(0.2, 0.2))
            assert (await until("frame")).number == rewound["frame"] + 1
        assert (await mirage.world(forked["session"])).info["num_frames"] == forked["after"] + 1


async def test_a_video_is_whole_or_gone(address: tuple[str, str]) -> None:
    """After a rewind, numbers may be another generation's frames, or none."""
    async with AsyncMirage(address[0]) as mirage:
        world = await mirage.create(photo(), seed=SEED)
        first, second = [await world.generate(poses=SCRIPT[0]) for _ in range(2)]
        await second.wait()
        await world.rewind(frame=5)
        third = await world.generate(poses=SCRIPT[0][:2])
        await third.wait()
        assert len(await first.video()) > 0 and len(await third.video()) > 0
        with pytest.raises(ServiceError, match="rewound") as gone:
            await second.video()
        assert gone.value.status == 410 and gone.value.problem["first_available"] == 6


@pytest.mark.parametrize(("title", "num_frames"), [("What if", [9, 9]), ("Keep it", [9])])
async def test_the_sdk_page(
    address: tuple[str, str], tmp_path: Path, title: str, num_frames: list[int]
) -> None:
    page = (ROOT / "docs" / "sdk.md").read_text()
    code = re.search(rf"## {title}.*?```python\n(.*?)```", page, re.S)
    assert code
    (tmp_path / "photo.jpg").write_bytes(photo())
    script = code[1].replace("http://127.0.0.1:8000", address[0])
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, cwd=tmp_path, stdout=-1, stderr=-1,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    assert [*map(int, output.split())] == num_frames


async def test_a_world_travels_over_grpc(address: tuple[str, str]) -> None:
    async with AsyncMirage(address[0]) as mirage, aio.insecure_channel(address[1]) as channel:
        world = await mirage.create(photo(), seed=SEED)
        await (await world.generate(poses=SCRIPT[0])).wait()
        stub = world_pb2_grpc.WorldStub(channel)
        file = [one async for one in stub.Export(pb.ExportRequest(session=world.id))]
        copy = await stub.Import(iter(file))
        assert copy.id != world.id and copy.num_frames == 6
        first, second = (await world.frame(5)), (await (await mirage.world(copy.id)).frame(5))
        assert first.image == second.image
        with pytest.raises(aio.AioRpcError, match="INVALID_ARGUMENT"):
            await stub.Import(iter([pb.Chunk(data=b"no world")]))


class Gateway:
    """`mirage gateway` as a process of its own."""

    def __init__(self, settings: Settings) -> None:
        self.ports = free_port(), free_port()
        self.url, self.grpc = (f"http://127.0.0.1:{self.ports[0]}", f"127.0.0.1:{self.ports[1]}")
        update = {"port": self.ports[0], "grpc_port": self.ports[1], "log_level": "warning"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "service.cli", "gateway"],
            cwd=ROOT,
            env=environment(settings.model_copy(update=update)),
        )

    async def ready(self) -> None:
        async with httpx.AsyncClient(base_url=self.url) as http, asyncio.timeout(60):
            while True:
                with suppress(httpx.TransportError):
                    await http.get("/livez")
                    return
                await asyncio.sleep(0.1)

    async def streams(self) -> float:
        async with httpx.AsyncClient(base_url=self.url) as http:
            text = (await http.get("/metrics")).text
        return float(re.search(r"^mirage_streams_active (\S+)", text, re.M)[1])  # type: ignore[index]

    async def settled(self) -> tuple[int, float]:
        """Open files and resident MB, once no stream is open."""
        async with asyncio.timeout(60):
            while await self.streams():  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)
        folder = Path(f"/proc/{self.process.pid}")
        pages = int((folder / "statm").read_text().split()[1])
        return len(os.listdir(folder / "fd")), pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    async def stopped(self) -> int:
        return await asyncio.to_thread(self.process.wait, 60)


@asynccontextmanager
async def gateway(settings: Settings) -> AsyncIterator[Gateway]:
    one = Gateway(settings)
    try:
        await one.ready()
        yield one
    finally:
        one.process.kill()
        one.process.wait()


async def follow_first_request(url: str, session: str, begun: asyncio.Event) -> list[str]:
    """The lines of server-sent events until they end."""
    async with httpx.AsyncClient(base_url=url, timeout=20) as client:
        listed = (await client.get(f"/v1/sessions/{session}/generations")).json()["generations"]
        events = f"/v1/sessions/{session}/generations/{listed[0]['id']}/events"
        lines = []
        async with client.stream("GET", events) as answer:
            async for line in answer.aiter_lines():
                lines.append(line)
                begun.set()
        return [line for line in lines if line]


async def test_sigterm_says_goodbye_and_the_next_gateway_goes_on(
    settings: Settings, control: ControlPlane
) -> None:
    async with gateway(settings) as one:
        session = await create(one.url)
        stream = f"/v1/sessions/{session}/stream?after=-1"
        async with (
            websockets.connect(f"ws{one.url[4:]}{stream}") as text,
            aio.insecure_channel(one.grpc) as channel,
        ):
            assert json.loads(await text.recv())["type"] == "hello"
            call = world_pb2_grpc.WorldStub(channel).Stream()
            await call.write(pb.ClientMessage(open=pb.Open(session=session, after=-1)))
            assert (await call.read()).HasField("hello")
            begun = asyncio.Event()
            following = asyncio.create_task(follow_first_request(one.url, session, begun))
            await asyncio.wait_for(begun.wait(), 10)
            one.process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(60):
                retry, event, data = (await following)[-3:]
                assert (retry, event) == ("retry: 1000", "event: goodbye")
                assert json.loads(data.removeprefix("data: "))["retry_after_s"] == 1
                while (said := json.loads(await text.recv()))["type"] != "goodbye":
                    pass
                assert said["after"] == -1 and said["retry_after_s"] > 0
                with pytest.raises(websockets.ConnectionClosed) as closed:
                    await text.recv()
                assert closed.value.rcvd is not None and closed.value.rcvd.code == 1012
                while not (answer := await call.read()).HasField("goodbye"):
                    pass
                assert answer.goodbye.retry_after_s > 0
                assert await call.read() is aio.EOF
        assert await one.stopped() in (0, -signal.SIGTERM)
    async with gateway(settings) as two:
        url = f"ws{two.url[4:]}/v1/sessions/{session}/stream?after={said['after']}"
        async with websockets.connect(url) as text:
            assert json.loads(await text.recv())["after"] == said["after"]


async def test_connects_and_disconnects_leave_nothing(
    settings: Settings, control: ControlPlane
) -> None:
    """TEST_CONNECTS=10000 for the full count."""
    async with gateway(settings) as one, aio.insecure_channel(one.grpc) as channel:
        session = await create(one.url)
        world = world_pb2_grpc.WorldStub(channel)

        async def once(index: int) -> None:
            if index % 3 == 2:
                call = world.Stream()
                await call.write(pb.ClientMessage(open=pb.Open(session=session)))
                await call.read()
                call.cancel()
                return
            url = f"ws{one.url[4:]}/v1/sessions/{session}/stream"
            async with websockets.connect(url) as stream:
                await stream.recv()
                if index % 3:
                    stream.transport.abort()  # vanished

        for index in range(30):  # what is made once
            await once(index)
        files, memory_mb = await one.settled()
        for index in range(CONNECTS):
            await once(index)
        files_after, memory_after_mb = await one.settled()
        print(f"{CONNECTS} connects: {files} -> {files_after} files, {memory_mb:.1f} -> "
              f"{memory_after_mb:.1f} MB")  # fmt: skip
    assert files_after <= files + 2
    assert memory_after_mb < memory_mb + 8


async def test_a_client_that_takes_nothing_is_dropped_and_harms_nobody(
    settings: Settings, control: ControlPlane
) -> None:
    settings = settings.model_copy(update={"frame_width": 512, "frame_height": 256})
    app = create_app(settings)
    config = uvicorn.Config(app, port=free_port(), log_config=None, ws="websockets-sansio")
    server = GatewayServer(config, app)
    bound = listening(config, untaken_ms=1500)
    engine = noop_engine(height=256, width=512, still=True)
    worker = Worker(control, settings, Runner(engine, Encoding()), NoFaults())
    tasks = [asyncio.create_task(server.serve([bound])), asyncio.create_task(worker.run())]
    while not server.started:  # noqa: ASYNC110 - uvicorn has a flag, no event
        await asyncio.sleep(0.01)
    url = f"http://127.0.0.1:{config.port}"
    session = await create(url)
    deaf = socket.create_connection(("127.0.0.1", config.port))
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    deaf.sendall(
        f"GET /v1/sessions/{session}/stream?after=-1&format=raw HTTP/1.1\r\nHost: x\r\n"
        "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
    )
    try:
        async with AsyncMirage(url) as mirage, asyncio.timeout(90):
            world = await mirage.world(session)
            await world.generate(poses=[np.eye(4)] * 60)
            numbers = []
            async for frame in world.frames(wait_s=20):
                numbers.append(frame.number)
                if frame.number == 60:
                    break
            assert numbers == list(range(61))  # somebody who reads is not held up
            streams = app.state.gateway.open_streams
            while streams:  # noqa: ASYNC110 - a set, no event
                await asyncio.sleep(0.1)
    finally:
        deaf.close()
        server.should_exit = True
        worker.stop()
        await asyncio.gather(*tasks)
        await end(tasks)
