"""gRPC over a real port: the stream, errors, health, reflection."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from fake_worker import FakeWorker, working
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from google.rpc.status_pb2 import Status
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from redis.exceptions import ConnectionError as RedisConnectionError
from uploads_made import npy, png

from service.app import create_app
from service.control import keys
from service.control.frames import ManifestEntry
from service.control.plane import ControlPlane
from service.convert import plain
from service.errors import ConfigurationError
from service.limits import MAX_ACTIONS
from service.local.embedded import free_port
from service.poses import flat
from service.rest import sessions
from service.rpc import calls, walk
from service.rpc.calls import ROUTES, SERVICE
from service.rpc.server import check_certificates
from service.settings import Settings
from service.telemetry import REQUEST_ID
from service.video import decode_frame
from service.wire import world_pb2 as pb
from service.wire import world_pb2_grpc

IDENTITY = flat(np.eye(4))


class Served:
    """A gateway with both ports."""

    def __init__(self, http: httpx.AsyncClient, channel: aio.Channel, app: Any) -> None:
        self.http, self.channel, self.app = http, channel, app
        self.world = world_pb2_grpc.WorldStub(channel)

    async def open(self) -> str:
        return str((await self.http.post("/v1/sessions", files={"image": png()})).json()["id"])


@pytest.fixture
async def served(settings: Settings, control: ControlPlane, samples: Path) -> AsyncIterator[Served]:
    port = free_port()
    app = create_app(settings.model_copy(update={"grpc_port": port}), samples)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app=app)
        async with (
            httpx.AsyncClient(transport=transport, base_url="http://localhost") as http,
            aio.insecure_channel(f"127.0.0.1:{port}") as channel,
        ):
            yield Served(http, channel, app)


class Talk:
    """One Stream call."""

    def __init__(self, served: Served, session: str, **opening: Any) -> None:
        self.call = served.world.Stream()
        self._opening = pb.ClientMessage(open=pb.Open(session=session, protocol=1, **opening))

    async def __aenter__(self) -> Talk:
        await self.call.write(self._opening)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.call.cancel()

    async def say(self, **message: Any) -> None:
        await self.call.write(pb.ClientMessage(**message))

    async def get(self, kind: str) -> Any:
        """The next message of this kind."""
        async with asyncio.timeout(60):
            while (message := await self.call.read()) is not aio.EOF:
                if message.WhichOneof("message") == kind:
                    return getattr(message, kind)
        raise AssertionError(f"the stream ended without a {kind}")


async def test_a_walk(served: Served, settings: Settings) -> None:
    async with working(FakeWorker(settings)), Talk(served, await served.open(), after=-1) as talk:
        hello = await talk.get("hello")
        assert (hello.protocol, hello.width, hello.height) == (1, 64, 32)
        assert (await talk.get("frame")).frame == 0
        pose = pb.LivePose(pose=pb.Pose(matrix=IDENTITY), client_time_ms=5.5)
        await talk.say(pose=pose, sequence=7)
        frame = await talk.get("frame")
        assert (frame.frame, frame.sequence, frame.client_time_ms) == (1, 7, 5.5)
        assert list(frame.matrix) == IDENTITY
        assert decode_frame(frame.image)[0, 0, 0] == 1
        await talk.say(path=pb.Path(actions=[pb.Action(forward_m=0.3)]), sequence=8)
        assert (await talk.get("accepted")).total == 3
        assert [(await talk.get("frame")).frame for _ in range(3)] == [2, 3, 4]
        assert (await talk.get("progress")).state == pb.GENERATION_STATE_DONE


async def test_who_has_said_all_still_hears(served: Served, settings: Settings) -> None:
    session = await served.open()
    async with working(FakeWorker(settings)), Talk(served, session, after=-1) as talk:
        await talk.call.done_writing()
        assert (await talk.get("frame")).frame == 0
        path = pb.Path(poses=[pb.Pose(matrix=IDENTITY)])
        asked = pb.CreateGenerationRequest(session=session, path=path)
        await served.world.CreateGeneration(asked)
        assert (await talk.get("frame")).frame == 1


async def test_errors_have_codes_and_details(served: Served) -> None:
    async with Talk(served, "s1") as talk:
        with pytest.raises(aio.AioRpcError) as refused:
            await talk.get("hello")
    assert refused.value.code() == grpc.StatusCode.NOT_FOUND
    details = dict(refused.value.trailing_metadata() or ())["grpc-status-details-bin"]
    assert b"mirage.v1.Problem" in details and b"unknown-session" in details


async def test_a_defect_of_a_stream_is_told_to_the_log_alone(
    served: Served, monkeypatch: pytest.MonkeyPatch, logs_of: Callable[..., list[Any]]
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("nobody at 10.0.0.7:6379")

    logs = logs_of(walk)
    monkeypatch.setattr(walk, "converse", broken)
    async with Talk(served, "s1") as talk:
        with pytest.raises(aio.AioRpcError) as refused:
            await talk.get("hello")
    assert refused.value.code() == grpc.StatusCode.INTERNAL
    problem = problem_of_call(refused.value)
    assert problem.type == "urn:mirage:problem:internal" and "10.0.0.7" not in str(refused.value)
    (said,) = logs
    assert said["request_id"] == problem.request_id and "10.0.0.7" in said["error"]


async def test_a_stream_that_says_nothing_ends(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walk, "OPENING_S", 0.2)
    call = served.world.Stream()
    await call.wait_for_connection()
    async with asyncio.timeout(60):
        with pytest.raises(aio.AioRpcError, match="begins with `open`") as caught:
            await call.read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_stream_begins_with_open(served: Served) -> None:
    call = served.world.Stream()
    await call.write(pb.ClientMessage(ping=pb.Ping()))
    with pytest.raises(aio.AioRpcError, match="begins with `open`"):
        await call.read()


async def test_health(served: Served) -> None:
    health = health_pb2_grpc.HealthStub(served.channel)
    answer = await health.Check(health_pb2.HealthCheckRequest(service="mirage.v1.World"))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_what_anybody_may_ask_is_short(served: Served) -> None:
    """A server of reflection repeats what it was asked, and both are parsed on everybody's loop."""
    reflection = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    listing = b"\x3a\x01*"  # list_services
    for ask, is_short in ((listing, True), (listing + 30_000 * b"\xf8\x07\x01", False)):
        calls = (
            served.channel.unary_unary("/grpc.health.v1.Health/Check")(ask[3:]),
            served.channel.stream_stream(reflection)(iter([ask])).read(),
        )
        for call in calls:
            if is_short:
                assert await call
                continue
            with pytest.raises(aio.AioRpcError, match="65,536 at most"):
                await call


async def test_a_stopping_gateway_says_goodbye(served: Served, settings: Settings) -> None:
    async with working(FakeWorker(settings)), Talk(served, await served.open(), after=-1) as talk:
        await talk.get("frame")
        served.app.state.gateway.closing.set()
        goodbye = await talk.get("goodbye")
        assert goodbye.after == 0 and goodbye.retry_after_s > 0
        assert await talk.call.read() is aio.EOF


async def test_every_call_of_the_contract_is_served() -> None:
    unary = {method.name for method in SERVICE.methods} - {"Stream"}
    assert unary == set(ROUTES)


async def test_unary_calls_do_what_rest_does(served: Served, settings: Settings) -> None:
    world = served.world
    async with working(FakeWorker(settings)):
        made = await world.CreateSession(pb.CreateSessionRequest(image=png(), fov_deg=70, seed=5))
        assert (made.seed, made.width, made.upload.lens_source) == (5, 64, "fov_deg")
        path = pb.Path(actions=[pb.Action(forward_m=0.3)])
        asked = pb.CreateGenerationRequest(session=made.id, path=path)
        walk = await world.CreateGeneration(asked)
        assert (walk.total, walk.kind) == (3, "generate")
        named = {"session": made.id, "id": walk.id}
        events = [one async for one in world.WatchGeneration(pb.WatchGenerationRequest(**named))]
        assert events[-1].progress.state == pb.GENERATION_STATE_DONE
        assert (await world.GetGeneration(pb.GetGenerationRequest(**named))).done == 3
        video = b"".join([one.data async for one in world.GetVideo(pb.GetVideoRequest(**named))])
        assert b"ftyp" in video[:16]
        frames = await world.ListFrames(pb.ListFramesRequest(session=made.id, after=0))
        assert [frame.frame for frame in frames.frames] == [1, 2, 3] and frames.next_after == 3
        frame = await world.GetFrame(pb.GetFrameRequest(session=made.id, frame=2))
        assert (frame.frame, decode_frame(frame.image)[0, 0, 0]) == (2, 2)
    assert (await world.GetMemory(pb.GetMemoryRequest(session=made.id))).num_points == 400
    asked = pb.GetMemoryPointsRequest(
        session=made.id, format=pb.POINT_FORMAT_PLY, axes=pb.AXES_ROS, max_points=7
    )
    points = b"".join([one.data async for one in world.GetMemoryPoints(asked)])
    assert points.startswith(b"ply\n") and b"comment metres, ros axes" in points
    listed = await world.ListGenerations(pb.ListGenerationsRequest(session=made.id))
    assert [one.kind for one in listed.generations] == ["init", "generate"]
    await world.KeepAlive(pb.KeepAliveRequest(session=made.id))
    now = await world.GetSession(pb.GetSessionRequest(session=made.id))
    over_rest = (await served.http.get(f"/v1/sessions/{made.id}")).json()
    over_rest = {
        name: value or "" if name == "origin" else value for name, value in over_rest.items()
    }
    assert {name: value for name, value in plain(now).items() if name in over_rest} == {
        **over_rest, "created_at": plain(now)["created_at"], "expires_at": plain(now)["expires_at"],
    }  # fmt: skip
    page = await world.ListSessions(pb.ListSessionsRequest(limit=1))
    assert [one.id for one in page.sessions] == [made.id]
    sample = (await world.ListSamples(Empty())).samples[0]
    picture = await world.GetSamplePicture(pb.GetSamplePictureRequest(name=sample.name))
    assert picture.data.startswith(b"\x89PNG")
    await world.DeleteSession(pb.DeleteSessionRequest(session=made.id))
    with pytest.raises(aio.AioRpcError) as gone:
        await world.GetSession(pb.GetSessionRequest(session=made.id))
    assert gone.value.code() == grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("name", ["before the door", "Tür 2: links", "a/b", "%41", "..", "a?b#c"])
async def test_names_arrive_as_they_were_sent(served: Served, name: str) -> None:
    session = await served.open()
    with pytest.raises(aio.AioRpcError) as caught:
        await served.world.ForgetSnapshot(pb.ForgetSnapshotRequest(session=session, name=name))
    assert caught.value.details() == f"session {session!r} has no snapshot {name!r}"


async def test_a_slash_in_an_id_is_told_as_it_was_sent(served: Served) -> None:
    with pytest.raises(aio.AioRpcError) as caught:
        await served.world.GetSession(pb.GetSessionRequest(session="../samples"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert "'../samples'" in (caught.value.details() or "")
    assert "'../samples'" in problem_of_call(caught.value).detail


@pytest.mark.parametrize(
    ("call", "request_", "fields"),
    [
        ("GetSession", pb.GetSessionRequest(), ["session"]),
        ("GetGeneration", pb.GetGenerationRequest(session="s1"), ["id"]),
        ("GetVideo", pb.GetVideoRequest(), ["session", "id"]),
        ("WatchGeneration", pb.WatchGenerationRequest(session="s1"), ["id"]),
        ("GetSamplePicture", pb.GetSamplePictureRequest(), ["name"]),
    ],
)
async def test_a_field_without_which_there_is_no_address_is_named(
    served: Served, call: str, request_: Message, fields: list[str]
) -> None:
    with pytest.raises(aio.AioRpcError) as caught:
        answer = getattr(served.world, call)(request_, metadata=(("x-request-id", "robot-7"),))
        await (answer.read() if hasattr(answer, "read") else answer)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    problem = problem_of_call(caught.value)
    assert [(one.field, one.allowed) for one in problem.errors] == [
        (one, "required") for one in fields
    ]
    assert problem.request_id == "robot-7" and "/v1" not in problem.detail
    assert dict(caught.value.trailing_metadata() or ())["x-request-id"] == "robot-7"


async def test_a_calls_request_id_comes_back(served: Served) -> None:
    metadata = (("x-request-id", "robot-7"),)
    listed = served.world.ListSamples(Empty(), metadata=metadata)
    watched = served.world.WatchGeneration(
        pb.WatchGenerationRequest(session="s1", id="r_1"), metadata=metadata
    )
    await listed
    with pytest.raises(aio.AioRpcError, match="no session 's1'"):
        await watched.read()
    for call in (listed, watched):
        assert dict(await call.trailing_metadata())["x-request-id"] == "robot-7"


async def test_names_longer_than_an_address_are_not_repeated(
    served: Served, capfd: pytest.CaptureFixture[str]
) -> None:
    """Not in the answer, and not in the log."""
    name = "a" * 60_000
    stream = served.world.Stream()
    await stream.write(pb.ClientMessage(open=pb.Open(session=name)))
    calls = (
        served.world.GetSession(pb.GetSessionRequest(session=name)),
        served.world.GetGeneration(pb.GetGenerationRequest(session="s1", id=name)),
        stream.read(),
    )
    for call in calls:
        with pytest.raises(aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        (problem,) = problem_of_call(caught.value).errors
        assert problem.allowed == "at most 200 characters"
        assert len(caught.value.details() or "") < 300
    assert name not in "".join(capfd.readouterr())


async def test_only_files_may_be_large(served: Served) -> None:
    """The less a call has to say, the less is parsed of it."""
    session, world, rest = await served.open(), served.world, "a" * 2_000_000
    told = {"input_reference": png(), "poses": [pb.Pose()] * 32_000, "prompt": rest}
    for call in (
        world.GetSession(pb.GetSessionRequest(session="a" * 66_000)),
        world.Snapshot(pb.SnapshotRequest(session=session, name=rest)),
        world.CreateSession(pb.CreateSessionRequest(image=bytes(9_000_000), memory=rest)),
        world.CreateVideo(pb.CreateVideoRequest(**told)),
    ):
        with pytest.raises(aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        problem = problem_of_call(caught.value)
        assert problem.type == "urn:mirage:problem:too-large" and "at most" in problem.detail


async def test_a_path_is_counted_before_it_is_converted(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "given", None)
    session, most = await served.open(), served.app.state.gateway.settings.max_path_poses
    poses, actions = [pb.Pose()] * (most + 1), [pb.Action()] * (MAX_ACTIONS + 1)
    for path, field in (({"poses": poses}, "poses"), ({"actions": actions}, "actions")):
        asked = pb.CreateGenerationRequest(session=session, path=pb.Path(**path))
        with pytest.raises(aio.AioRpcError) as caught:
            await served.world.CreateGeneration(asked)
        (problem,) = problem_of_call(caught.value).errors
        assert (problem.field, caught.value.code().name) == (field, "INVALID_ARGUMENT")
    with pytest.raises(aio.AioRpcError, match=f"{most + 1} poses"):
        await served.world.CreateVideo(pb.CreateVideoRequest(poses=poses))


async def test_what_is_no_message_is_refused(served: Served) -> None:
    for name, asked in (("GetSession", b"\xff"), ("Import", b"\xff"), ("GetSession", None)):
        call = served.channel.stream_unary(f"/{SERVICE.full_name}/{name}")()
        if asked is not None:
            await call.write(asked)
        await call.done_writing()
        with pytest.raises(aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        (problem,) = problem_of_call(caught.value).errors
        assert problem.seen == ("nothing" if asked is None else "1 bytes")


async def test_a_stream_goes_on_after_a_message_that_is_too_long(served: Served) -> None:
    async with Talk(served, await served.open()) as talk:
        await talk.get("hello")
        await talk.say(path=pb.Path(poses=[pb.Pose()] * 600_000))
        (problem,) = (await talk.get("error")).errors
        assert problem.allowed == "at most 1,000,000 bytes beside pictures"
        seen = pb.Observation(image=bytes(1_100_000), pose=pb.Pose(matrix=IDENTITY))
        await talk.say(observe=seen, sequence=7)
        assert [one.field for one in (await talk.get("error")).errors] == ["image"]


async def test_videos(served: Served, settings: Settings) -> None:
    world = served.world
    pose = pb.Pose(matrix=IDENTITY)
    async with working(FakeWorker(settings)):
        for path in ({"actions": "forward 0.5, yaw 8"}, {"poses": [pose] * 7}):
            asked = pb.CreateVideoRequest(input_reference=png(), seconds=0.7, seed=3, **path)
            job = await world.CreateVideo(asked)
            assert (job.status, job.seconds, job.size) == (pb.VIDEO_STATUS_QUEUED, "0.70", "64x32")
            named = pb.GetVideoJobRequest(id=job.id)
            async with asyncio.timeout(20):
                while job.status != pb.VIDEO_STATUS_COMPLETED:
                    await asyncio.sleep(0.02)
                    job = await world.GetVideoJob(named)
            content = world.GetVideoContent(pb.GetVideoContentRequest(id=job.id))
            over_rest = (await served.http.get(f"/v1/videos/{job.id}/content")).content
            assert b"".join([one.data async for one in content]) == over_rest
    page = await world.ListVideos(pb.ListVideosRequest(limit=1))
    assert ([one.id for one in page.data], page.has_more) == ([job.id], True)
    await world.DeleteVideo(pb.DeleteVideoRequest(id=job.id))
    with pytest.raises(aio.AioRpcError) as gone:
        await world.GetVideoJob(named)
    assert gone.value.code() == grpc.StatusCode.NOT_FOUND
    with pytest.raises(aio.AioRpcError) as refused:
        await world.CreateVideo(pb.CreateVideoRequest(input_reference=png(), actions="jump 3"))
    assert problem_of_call(refused.value).errors[0].field == "actions"


async def test_a_generation_for_another_version_or_a_strange_webhook_is_refused(
    served: Served,
) -> None:
    session = await served.open()
    path = pb.Path(poses=[pb.Pose(matrix=IDENTITY)])
    for values, code in (
        ({"if_version": 77}, "ABORTED"),
        ({"webhook": "https://evil.example"}, "INVALID_ARGUMENT"),
    ):
        asked = pb.CreateGenerationRequest(session=session, path=path, **values)
        with pytest.raises(aio.AioRpcError) as refused:
            await served.world.CreateGeneration(asked)
        assert refused.value.code().name == code
    now = await served.world.GetSession(pb.GetSessionRequest(session=session))
    asked = pb.CreateGenerationRequest(session=session, path=path, if_version=now.version)
    assert (await served.world.CreateGeneration(asked)).total == 1


async def test_who_follows_a_generation_hears_that_the_gateway_stops(served: Served) -> None:
    session = await served.open()
    path = pb.Path(poses=[pb.Pose(matrix=IDENTITY)])
    walk = await served.world.CreateGeneration(
        pb.CreateGenerationRequest(session=session, path=path)
    )
    call = served.world.WatchGeneration(pb.WatchGenerationRequest(session=session, id=walk.id))
    assert (await call.read()).progress.state == pb.GENERATION_STATE_QUEUED
    served.app.state.gateway.closing.set()
    with pytest.raises(aio.AioRpcError) as ended:
        while await call.read() is not aio.EOF:
            pass
    assert ended.value.code() == grpc.StatusCode.UNAVAILABLE
    assert problem_of_call(ended.value).retry_after_s == 1


async def test_a_lens_whose_centre_is_at_0_is_whole(served: Served) -> None:
    """Protobuf sends no 0, so there it looks like half a lens."""
    lens = pb.Intrinsics(fx=50, fy=50, cx=0, cy=32)
    asked = pb.CreateSessionRequest(image=png(), intrinsics=lens)
    made = await served.world.CreateSession(asked)
    assert (made.upload.lens_source, made.intrinsics.cx) == ("intrinsics", 0)


async def test_what_is_wrong_with_a_request_is_told(served: Served) -> None:
    with pytest.raises(aio.AioRpcError) as refused:
        await served.world.CreateSession(pb.CreateSessionRequest(image=b"hello"))
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    problem = problem_of_call(refused.value)
    assert problem.errors[0].field == "image" and problem.request_id
    assert "PNG" in (refused.value.details() or "")  # what is allowed
    session = await served.open()
    for message, code in (
        (pb.DeleteSessionRequest(session=session, if_version=77), "ABORTED"),
        (pb.DeleteSessionRequest(session="../livez"), "NOT_FOUND"),
    ):
        with pytest.raises(aio.AioRpcError) as refused:
            await served.world.DeleteSession(message)
        assert refused.value.code().name == code


async def test_what_is_missing_in_a_message_has_the_messages_name(served: Served) -> None:
    session, pose = await served.open(), pb.Pose(matrix=IDENTITY)
    both = pb.Observation(image=png(), depth=png(), scale_m=2, pose=pose)
    for call, name in (
        (served.world.CreateGeneration(pb.CreateGenerationRequest(session=session)), "path"),
        (
            served.world.CreateGeneration(
                pb.CreateGenerationRequest(session=session, path=pb.Path())
            ),
            "path",
        ),
        (
            served.world.CreateObservation(
                pb.CreateObservationRequest(session=session, observation=both)
            ),
            "observation",
        ),
    ):
        with pytest.raises(aio.AioRpcError) as refused:
            await call
        problem = problem_of_call(refused.value)
        assert [one.field for one in problem.errors] == [name]
        assert f"{name}: " in problem.detail and "body" not in problem.detail


async def test_a_call_with_the_same_key_is_done_once(served: Served) -> None:
    asked, key = pb.CreateSessionRequest(image=png()), (("idempotency-key", "k1"),)
    first, second = [await served.world.CreateSession(asked, metadata=key) for _ in range(2)]
    assert first.id == second.id


async def test_a_call_that_failed_after_its_effect_is_done_once(
    served: Served, fails_once: Callable[[object, str, Exception], None]
) -> None:
    fails_once(sessions, "session_out", RedisConnectionError("its answer was lost"))
    asked, key = pb.CreateSessionRequest(image=png()), (("idempotency-key", "k2"),)
    with pytest.raises(aio.AioRpcError) as lost:
        await served.world.CreateSession(asked, metadata=key)
    assert lost.value.code() == grpc.StatusCode.UNAVAILABLE
    made = await served.world.CreateSession(asked, metadata=key)
    listed = await served.world.ListSessions(pb.ListSessionsRequest())
    assert [one.id for one in listed.sessions] == [made.id]


async def test_a_deadline_ends_a_call_and_leaves_nothing(served: Served) -> None:
    session = await served.open()
    before = len(asyncio.all_tasks())
    with pytest.raises(aio.AioRpcError) as late:
        waiting = pb.ListFramesRequest(session=session, after=-1, wait_s=10)
        await served.world.ListFrames(waiting, timeout=0.2)
    assert late.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    async with asyncio.timeout(60):
        while len(asyncio.all_tasks()) > before:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def problem_of_call(error: aio.AioRpcError) -> pb.Problem:
    """The problem among an error's details."""
    packed = dict(error.trailing_metadata() or ())["grpc-status-details-bin"]
    problem = pb.Problem()
    assert Status.FromString(packed).details[0].Unpack(problem)
    return problem


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, and what it signed: a server and a client."""
    folder = tmp_path_factory.mktemp("tls")
    script = """
    new="openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
    $new -x509 -keyout ca.key -out ca.pem -days 2 -subj /CN=authority
    for who in server client; do
        $new -keyout $who.key -out $who.csr -subj /CN=$who
        echo subjectAltName=DNS:localhost,IP:127.0.0.1 > san
        openssl x509 -req -in $who.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 \
            -extfile san -out $who.pem
    done
    """
    subprocess.run(["bash", "-ec", script], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl here")
async def test_tls_and_client_certificates(
    settings: Settings, control: ControlPlane, samples: Path, certificates: Path
) -> None:
    def pem(name: str) -> bytes:
        return (certificates / name).read_bytes()

    files = {
        "grpc_tls_cert": str(certificates / "server.pem"),
        "grpc_tls_key": str(certificates / "server.key"),
        "grpc_tls_client_ca": str(certificates / "ca.pem"),
    }
    port = free_port()
    app = create_app(settings.model_copy(update={"grpc_port": port, **files}), samples)

    async def answered(credentials: grpc.ChannelCredentials | None) -> bool:
        address = f"localhost:{port}"
        channel = (
            aio.secure_channel(address, credentials)
            if credentials
            else aio.insecure_channel(address)
        )
        async with channel:
            try:
                await world_pb2_grpc.WorldStub(channel).ListSamples(Empty(), timeout=20)
            except aio.AioRpcError as error:
                assert error.code() == grpc.StatusCode.UNAVAILABLE
                return False
        return True

    async with app.router.lifespan_context(app):
        known = grpc.ssl_channel_credentials(pem("ca.pem"), pem("client.key"), pem("client.pem"))
        assert await answered(known)
        assert not await answered(grpc.ssl_channel_credentials(pem("ca.pem")))
        assert not await answered(None)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl here")
def test_certificates_are_checked_before_anything_listens(
    settings: Settings, certificates: Path
) -> None:
    def check(*names: str) -> None:
        fields = ("grpc_tls_cert", "grpc_tls_key", "grpc_tls_client_ca")
        files = {field: str(certificates / one) for field, one in zip(fields, names, strict=False)}
        check_certificates(settings.model_copy(update=files))

    check()
    check("server.pem", "server.key", "ca.pem")
    for names, blamed in {
        ("server.pem", "client.key"): r"TLS_CERT='.*server.pem' with .*client.key' can't be used",
        ("none.pem", "server.key"): r"none.pem.*\(No such file or directory\)",
        ("san", "server.key"): "TLS_CERT=",
        ("server.pem", "server.key", "san"): "TLS_CLIENT_CA=",
    }.items():
        with pytest.raises(ConfigurationError, match=blamed):
            check(*names)


@pytest.mark.parametrize("given", ["robot-7.1", "a b", "x" * 65])
async def test_a_streams_request_id_is_the_clients_own_if_it_is_one(
    served: Served, given: str
) -> None:
    call = served.world.Stream(metadata=(("x-request-id", given),))
    await call.write(pb.ClientMessage(open=pb.Open(session="s1")))
    with pytest.raises(aio.AioRpcError) as error:
        await call.read()
    trailing = dict(error.value.trailing_metadata() or ())
    packed = trailing["grpc-status-details-bin"]
    problem = pb.Problem()
    assert trailing["x-request-id"] != given or given == "robot-7.1"
    assert Status.FromString(packed).details[0].Unpack(problem)
    assert (problem.request_id == given) == (given == "robot-7.1")
    assert REQUEST_ID.fullmatch(problem.request_id)


async def test_a_message_holds_all_files_of_a_form(settings: Settings, samples: Path) -> None:
    port, most = free_port(), 500_000
    changed = settings.model_copy(update={"grpc_port": port, "max_upload_bytes": most})
    app = create_app(changed, samples)
    async with app.router.lifespan_context(app), aio.insecure_channel(f"127.0.0.1:{port}") as one:
        files = dict.fromkeys(("image", "depth", "mask"), bytes(most))
        with pytest.raises(aio.AioRpcError) as error:
            await world_pb2_grpc.WorldStub(one).CreateSession(pb.CreateSessionRequest(**files))
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT, error.value.details()


async def test_depth_of_another_aspect_or_too_few_pixels_is_refused_as_over_rest(
    served: Served,
) -> None:
    session = await served.open()
    for side, image, size in ((64, png(), "96 x 64"), (5, png(64, 64), "8 x 8 pixels")):
        depth = npy(np.ones((side, side), np.float32))
        pose = pb.Pose(matrix=IDENTITY)
        seen = pb.Observation(image=image, depth=depth, pose=pose)
        for call in (
            served.world.CreateObservation(
                pb.CreateObservationRequest(session=session, observation=seen)
            ),
            served.world.CreateSession(pb.CreateSessionRequest(image=image, depth=depth)),
        ):
            with pytest.raises(aio.AioRpcError) as refused:
                await call
            told = problem_of_call(refused.value)
            assert told.type == "urn:mirage:problem:invalid-upload"
            assert f"{side} x {side} pixels" in told.detail and size in told.detail


async def test_an_export_that_breaks_off_says_why(served: Served, control: ControlPlane) -> None:
    session = await served.open()
    size = {"first_frame": 0, "num_frames": 1, "num_bytes": 1}
    gone = ManifestEntry(id=f"00000000-w.1-{'0' * 64}", kind="init", branch=1, **size)
    await control.redis.rpush(keys.manifest(session), gone.model_dump_json())
    with pytest.raises(aio.AioRpcError) as refused:
        async with asyncio.timeout(60):
            async for _ in served.world.Export(pb.ExportRequest(session=session)):
                pass
    assert refused.value.code() == grpc.StatusCode.DATA_LOSS
    assert "segment" in str(refused.value.details())
