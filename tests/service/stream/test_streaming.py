"""What a stream can be asked for: pace, inputs, forms of pictures, cameras, planes."""

from __future__ import annotations

import asyncio
import base64
import io
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import av
import numpy as np
import pytest
from fake_worker import FakeWorker, working
from PIL import Image
from stream_client import IDENTITY, Client
from uploads_made import npy, png

from bench.noop import start_worker
from service.auth.principal import LOCAL, Quota
from service.control.branches import RewindIn
from service.control.plane import ControlPlane
from service.control.requests import Generate, Progress, RequestState
from service.errors import SessionDeleted
from service.gateway import Gateway
from service.poses import MAX_DISTANCE_M, unflat
from service.settings import Settings
from service.stream import following, handling
from service.stream.inputs import held
from service.stream.messages import OpenMessage
from service.stream.motion import Sighting, ahead
from service.stream.pictures import Pictures
from service.stream.talk import Talk


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[None]:
    """A worker that keeps its frames, so that a rewound world has some."""
    worker = start_worker(settings.model_copy(update={"lease_s": 20.0}))
    try:
        yield
    finally:
        worker.terminate()
        await asyncio.to_thread(worker.join, 20)


def moved(x_m: float) -> list[float]:
    return [*IDENTITY[:3], x_m, *IDENTITY[4:]]


async def test_two_rewinds_at_once_leave_what_both_have_left(
    gateway: Gateway, session: str, settings: Settings, control: ControlPlane
) -> None:
    """A slow stream hears of the second one alone, and has none of what was made in between."""
    path = Generate(poses=[moved(0.1 * number) for number in range(12)])

    async def done(asked: Progress) -> None:
        progress = await control.branches.wait(session, asked.id, 60)
        assert progress.state is RequestState.DONE, progress

    async with running(settings):
        await done(await control.requests.append(session, path))
        before = await control.sessions.get(session)
        talk = Talk(gateway, LOCAL, OpenMessage(session=session), before, before.next_frame - 1)
        for frame in (4, 8):
            await done(await control.branches.rewind(session, RewindIn(frame=frame)))
            await done(await control.requests.append(session, path))
    await following._look(talk)
    said = await talk.outbox.get()
    assert said is not None and (said.rewound.frame, said.rewound.branch) == (4, 3)
    assert (talk.after, talk.branch) == (4, 3)


async def test_generation_does_not_run_ahead_of_play(
    gateway: Gateway, session: str, settings: Settings, control: ControlPlane
) -> None:
    client = Client(gateway, session, after=-1, frames_per_s=200, lead_frames=8)
    client.send(type="path", poses=[{"matrix": IDENTITY}] * 40, sequence=3)
    accepted = (await client.get("accepted")).head
    assert (accepted["total"], accepted["reply_to"]) == (40, 3)
    async with working(FakeWorker(settings)):
        while (await client.get("frame")).head["frame"] < 4:
            pass
        client.send(type="play", paused=True)
        while not (await client.get("state")).head["paused"]:
            pass
        await asyncio.sleep(0.2)
        made = (await control.sessions.get(session)).next_frame
        assert made <= 4 + 8 + settings.chunk_frames + 9  # sent, ahead, what lay in the outbox
        client.send(type="play", paused=False, speed=10)
        numbers = []
        while not numbers or numbers[-1] < 40:
            head = (await client.get("frame")).head
            numbers.append(head["frame"])
            assert head["request_id"] == accepted["id"]  # of the path, whatever piece it is
        progress = (await client.get("progress")).head
    assert (progress["id"], progress["state"], progress["done"]) == (accepted["id"], "done", 40)
    assert (progress["first_frame"], progress["last_frame"]) == (1, 40)
    await client.close()


async def test_a_path_at_a_rate_can_be_cancelled(
    gateway: Gateway, session: str, settings: Settings
) -> None:
    client = Client(gateway, session, frames_per_s=100)
    client.send(type="path", poses=[{"matrix": IDENTITY}] * 200)
    accepted = (await client.get("accepted")).head
    async with working(FakeWorker(settings)):
        while (await client.get("frame")).head["frame"] < 5:
            pass
        client.send(type="cancel", id=accepted["id"])
        assert (await cancelled(client))["id"] == accepted["id"]
    await client.close()


async def test_a_path_that_is_cancelled_tells_the_frames_that_exist(
    gateway: Gateway, session: str, settings: Settings, control: ControlPlane
) -> None:
    """More were made than were played; they come all the same."""
    client = Client(gateway, session, frames_per_s=20, lead_frames=40)
    client.send(type="path", poses=[{"matrix": IDENTITY}] * 200)
    accepted = (await client.get("accepted")).head
    async with working(FakeWorker(settings, step_s=0.001)):
        async with asyncio.timeout(60):
            while (await control.sessions.get(session)).next_frame < 20:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        client.send(type="play", paused=True)
        await client.get("state")
        client.send(type="cancel", id=accepted["id"])
        told = await cancelled(client)
        made = (await control.sessions.get(session)).next_frame - 1
        assert made >= 19
        assert (told["first_frame"], told["last_frame"], told["done"]) == (1, made, made)
        client.send(type="play", paused=False)
        while (await client.get("frame")).head["frame"] < made:
            pass
    await client.close()


async def cancelled(client: Client) -> dict[str, Any]:
    """The last that is said of a path, once it has ended."""
    while (progress := (await client.get("progress")).head)["state"] != "cancelled":
        assert progress["cancel_requested"] and progress["state"] in ("queued", "running")
    return progress


async def test_a_piece_that_is_being_asked_for_is_cancelled_with_its_path(
    gateway: Gateway, session: str, control: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    append, begun, is_cancelled = gateway.control.requests.append, asyncio.Event(), asyncio.Event()

    async def slow(*args: Any, **options: Any) -> Progress:
        begun.set()
        await is_cancelled.wait()
        return await append(*args, **options)

    monkeypatch.setattr(gateway.control.requests, "append", slow)
    client = Client(gateway, session, frames_per_s=50)
    client.send(type="path", poses=[{"matrix": IDENTITY}] * 3)
    name = (await client.get("accepted")).head["id"]
    await asyncio.wait_for(begun.wait(), 60)
    client.send(type="cancel", id=name)
    assert (await client.get("progress")).head["state"] == "cancelled"
    is_cancelled.set()
    async with asyncio.timeout(60):
        while name not in [  # noqa: ASYNC110
            one.id for one in await control.requests.list(session) if one.cancel_requested
        ]:
            await asyncio.sleep(0.01)
    await client.close()


async def test_a_path_goes_on_when_its_client_has_left_until_it_is_cancelled(
    gateway: Gateway, session: str, settings: Settings, control: ControlPlane
) -> None:
    client = Client(gateway, session, after=-1)
    client.send(type="path", poses=[{"matrix": IDENTITY}] * 500)
    accepted = (await client.get("accepted")).head
    async with working(FakeWorker(settings, step_s=0.01)), asyncio.timeout(60):
        await client.close()
        while (await control.sessions.get(session)).next_frame < 9:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        progress = await control.requests.cancel(session, accepted["id"])
        while not progress.state.is_final:
            await asyncio.sleep(0.01)
            progress = await control.requests.get(session, accepted["id"])
    assert progress.state == "cancelled" and progress.done < 500


async def test_a_path_at_a_rate_ends_soon_after_its_client_has_left(
    gateway: Gateway, session: str, settings: Settings, control: ControlPlane
) -> None:
    client = Client(gateway, session, after=-1, frames_per_s=50, lead_frames=8)
    async with working(FakeWorker(settings)), asyncio.timeout(60):
        client.send(type="path", poses=[{"matrix": IDENTITY}] * 500)
        while (await client.get("frame")).head["frame"] < 4:
            pass
        await client.close()
        given = found = await control.requests.list(session)
        while not all(one.state.is_final for one in found):
            await asyncio.sleep(0.01)
            found = await control.requests.list(session)
        assert len(found) == len(given)
    assert (await control.sessions.get(session)).next_frame < 100


async def test_seek_while_paused_is_answered_at_once(
    gateway: Gateway, session: str, settings: Settings
) -> None:
    client = Client(gateway, session, after=-1, frames_per_s=50)
    async with working(FakeWorker(settings)):
        client.send(type="path", poses=[{"matrix": IDENTITY}] * 60)
        while (await client.get("frame")).head["frame"] < 6:
            pass
        client.send(type="play", paused=True)
        while not (await client.get("state")).head["paused"]:
            pass
        client.send(type="seek", frame=2, sequence=9)
        rewound = (await client.get("rewound")).head
        assert (rewound["frame"], rewound["branch"], rewound["reply_to"]) == (2, 2, 9)
        assert (await client.get("progress")).head["state"] == "cancelled"  # it led on from 6
        client.send(type="play", paused=False)
        client.send(type="path", poses=[{"matrix": moved(1)}] * 20)
        heads = [(await client.get("frame")).head for _ in range(20)]
        assert (await client.get("progress")).head["state"] == "done"
    assert [(head["frame"], head["branch"]) for head in heads] == [(3 + i, 2) for i in range(20)]
    assert {head["matrix"][3] for head in heads} == {1.0}
    await client.close()


@pytest.mark.parametrize("frames_per_s", [0, 30])
async def test_a_path_ends_where_somebody_else_rewinds_the_world(
    gateway: Gateway, session: str, settings: Settings, control: ControlPlane, frames_per_s: int
) -> None:
    client = Client(gateway, session, after=-1, frames_per_s=frames_per_s, lead_frames=64)
    async with working(FakeWorker(settings, step_s=0.002)):
        client.send(type="path", poses=[{"matrix": IDENTITY}] * 200)
        while (await client.get("frame")).head["frame"] < 12:
            pass
        back = await control.branches.rewind(session, RewindIn(frame=3))
        assert (await control.branches.wait(session, back.id, 60)).result is not None
        assert (await client.get("rewound")).head["frame"] == 3
        told = (await client.get("progress")).head["state"]
        assert told == (
            "cancelled" if frames_per_s else "done"
        )  # whole, but not all of it was sent
        client.send(type="pose", matrix=moved(2))
        heads = [(await client.get("frame")).head]
        while heads[-1]["matrix"][3] != 2.0:  # pieces that were on their way may come before
            heads.append((await client.get("frame")).head)
    assert [(head["frame"], head["branch"]) for head in heads] == [
        (4 + i, 2) for i in range(len(heads))
    ]
    await client.close()


async def test_a_paused_stream_hears_that_its_world_is_gone(
    gateway: Gateway, session: str, settings: Settings, control: ControlPlane
) -> None:
    client = Client(gateway, session, after=-1)
    async with working(FakeWorker(settings)):
        await client.get("frame")
        client.send(type="play", paused=True)
        while not (await client.get("state")).head["paused"]:
            pass
        client.send(type="pose", matrix=IDENTITY)
        while (await control.sessions.get(session)).next_frame < 2:  # noqa: ASYNC110 others' work
            await asyncio.sleep(0.01)
        await control.sessions.delete(session)
        with pytest.raises(SessionDeleted):
            await client.rest()


async def test_frames_go_out_at_the_rate_asked_for(
    gateway: Gateway, session: str, settings: Settings
) -> None:
    async with working(FakeWorker(settings)):
        client = Client(gateway, session, after=-1, frames_per_s=50)
        client.send(type="path", poses=[{"matrix": IDENTITY}] * 20)
        await client.get("frame")
        started_s = time.monotonic()
        for _ in range(20):
            await client.get("frame")
        assert time.monotonic() - started_s > 0.5 * 20 / 50  # unpaced: milliseconds
        await client.close()


async def test_held_keys_move_the_camera_until_they_are_released(
    gateway: Gateway, session: str, settings: Settings
) -> None:
    async with working(FakeWorker(settings)):
        client = Client(gateway, session, after=-1, frames_per_s=60)
        await client.get("frame")
        client.send(type="input", keys=["w", "ArrowRight"], turn_deg_per_s=2, sequence=4)
        heads = [(await client.get("frame")).head for _ in range(5)]
        client.send(type="input")
        client.send(type="ping")
        await client.get("pong")
        await client.close()
    places = [head["matrix"][11] for head in heads]
    assert places == sorted(places) and places[0] > 0
    assert heads[-1]["matrix"][2] > 0  # turned to the right
    assert {head["sequence"] for head in heads} == {4}


async def test_held_keys_carry_nobody_away_while_no_frame_comes(
    gateway: Gateway, session: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handling, "OUTAGE_S", 0.2)
    client = Client(gateway, session, after=-1)
    async with working(FakeWorker(settings)):
        await client.get("frame")
    client.send(type="input", forward=1, move_m_per_s=10)
    await asyncio.sleep(2)
    async with working(FakeWorker(settings)):
        places = [(await client.get("frame")).head["matrix"][11]]
        while places[-1] <= 6:
            places.append((await client.get("frame")).head["matrix"][11])
        await client.close()
    assert 0 < places[0] < 6 and places == sorted(places)  # 20 m without an end to it


async def test_held_keys_go_on_from_the_end_of_a_path(
    gateway: Gateway, session: str, settings: Settings
) -> None:
    async with working(FakeWorker(settings)):
        client = Client(gateway, session, after=-1, frames_per_s=60)
        await client.get("frame")
        client.send(type="input", forward=1)
        for _ in range(3):
            await client.get("frame")
        client.send(type="path", poses=[{"matrix": moved(50)}] * 4)
        heads = [(await client.get("frame")).head]
        while heads[-1]["kind"] != "live" or "generate" not in {head["kind"] for head in heads}:
            heads.append((await client.get("frame")).head)
        await client.close()
    assert heads[-1]["matrix"][3] == 50  # to the right, where the path led
    assert heads[-1]["matrix"][11] > 0


async def test_held_keys_go_on_from_where_a_seek_leads(
    gateway: Gateway, session: str, settings: Settings
) -> None:
    async with running(settings):
        client = Client(gateway, session, after=-1)
        await client.get("frame")
        client.send(type="input", forward=1, move_m_per_s=2)
        while (await client.get("frame")).head["matrix"][11] < 3:
            pass
        client.send(type="seek", frame=0)
        assert (await client.get("rewound")).head["frame"] == 0
        heads = [(await client.get("frame")).head for _ in range(3)]
        await client.close()
    places = [head["matrix"][11] for head in heads]
    assert [head["branch"] for head in heads] == [2, 2, 2]
    assert 0 < places[0] < 1 and places == sorted(places)


async def test_held_keys_go_on_when_somebody_else_rewinds_the_world(
    gateway: Gateway, session: str, settings: Settings, control: ControlPlane
) -> None:
    async with running(settings):
        client = Client(gateway, session, after=-1)
        await client.get("frame")
        client.send(type="input", forward=1)
        for _ in range(3):
            await client.get("frame")
        await control.branches.rewind(session, RewindIn(frame=0))
        assert (await client.get("rewound")).head["branch"] == 2
        client.send(type="ping")
        await client.get("pong")
        assert [(await client.get("frame")).head["branch"] for _ in range(3)] == [2, 2, 2]
        await client.close()


async def test_a_picture_that_cannot_be_used_is_answered_as_over_rest(
    gateway: Gateway, session: str
) -> None:
    client = Client(gateway, session)
    picture = {"image": png(), "pose": {"matrix": IDENTITY}}
    for sequence, (more, field) in enumerate(
        [
            ({"fov_deg": 500}, "fov_deg"),
            ({"scale_m": -1}, "scale_m"),
            ({"scale_m": 1, "depth": png()}, "depth"),
            ({"fov_deg": 60, "intrinsics": {"fx": 9, "fy": 9, "cx": 4, "cy": 4}}, "fov_deg"),
        ]
    ):
        client.send(type="observe", sequence=sequence, **picture, **more)
        error = (await client.get("error")).head
        assert (error["problem"], error["reply_to"]) == (
            "urn:mirage:problem:invalid-request",
            sequence,
        )
        assert field in str(error["errors"])
    await client.close()


async def test_depth_of_another_aspect_or_too_few_pixels_is_answered_as_over_rest(
    gateway: Gateway, session: str
) -> None:
    client = Client(gateway, session)
    for side, size in ((64, "96 x 64"), (5, "8 x 8 pixels")):
        image = png(64, 64) if side == 5 else png()
        depth = base64.b64encode(npy(np.ones((side, side), np.float32))).decode()
        picture = base64.b64encode(image).decode()
        client.send(type="observe", image=picture, depth=depth, pose={"matrix": IDENTITY})
        error = (await client.get("error")).head
        assert error["problem"] == "urn:mirage:problem:invalid-upload"
        assert f"{side} x {side} pixels" in error["detail"] and size in error["detail"]
    await client.close()


@pytest.mark.parametrize("message", [{"type": "seek", "frame": 0}, {"type": "fork"}])
async def test_a_branch_that_nobody_makes_in_time_is_cancelled_and_said(
    gateway: Gateway,
    session: str,
    control: ControlPlane,
    monkeypatch: pytest.MonkeyPatch,
    message: dict[str, Any],
) -> None:
    monkeypatch.setattr(handling, "BRANCHING_S", 0.1)
    client = Client(gateway, session)
    client.send(**message, sequence=1)
    error = (await client.get("error")).head
    assert (error["status"], error["reply_to"]) == (503, 1)
    assert "was not done within 0.1 s" in error["detail"] and error["retry_after_s"] > 0
    assert (await control.requests.list(session))[-1].cancel_requested
    client.send(type="ping")
    await client.get("pong")
    await client.close()


async def test_a_fork_that_somebody_cancels_is_said(
    gateway: Gateway,
    session: str,
    settings: Settings,
    control: ControlPlane,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(handling, "BRANCHING_S", 60.0)
    client = Client(gateway, session)
    client.send(type="fork", sequence=1)
    await client.get("hello")
    async with asyncio.timeout(60):
        while (asked := (await control.requests.list(session))[-1]).kind != "fork":  # noqa: ASYNC110 it is in others' hands
            await asyncio.sleep(0.01)
    await control.requests.cancel(session, asked.id)
    async with running(settings):
        error = (await client.get("error")).head
    assert (error["status"], error["reply_to"]) == (409, 1)
    assert "The fork was cancelled" in error["detail"]
    await client.close()


async def test_a_defect_costs_one_message_and_is_logged(
    gateway: Gateway,
    session: str,
    monkeypatch: pytest.MonkeyPatch,
    logs_of: Callable[..., list[Any]],
) -> None:
    logs = logs_of(handling)
    client = Client(gateway, session)
    monkeypatch.setattr(handling, "_cancel", None)  # calling it is a TypeError
    client.send(type="cancel", id="r1", sequence=5)
    error = (await client.get("error")).head
    assert (error["problem"], error["reply_to"]) == ("urn:mirage:problem:internal", 5)
    assert [(one["type"], one["exc_info"]) for one in logs] == [("CancelMessage", True)]
    client.send(type="ping")
    await client.get("pong")
    await client.close()


def test_speeds_are_metres_and_degrees_per_second() -> None:
    now = held((1, 0, 0, 0, 0), [], 2.0, 90.0)
    pose = np.eye(4)
    for _ in range(10):
        pose = now.advanced(pose, 0.1)
    assert pose[:3, 3] == pytest.approx([0, 0, 2.0])
    assert not held((1, 0, 0, 0, 0), ["s"], 2.0, 90.0).moves  # forward and back
    run = held((0, 0, 0, 0, 0), ["W", "shift", "arrowleft"], 2.0, 90.0)
    assert (run.move_m_per_s[0], run.turn_deg_per_s) == (4.0, (-90.0, 0.0))


def test_motion_is_continued_to_the_frames_time() -> None:
    before, now = np.eye(4), np.eye(4)
    angle = np.radians(3.0)
    now[:3, :3] = [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
    now[2, 3] = 0.1
    pose = ahead(Sighting(before, 1.0), Sighting(now, 1.1), lead_s=0.2)
    assert pose[2, 3] == pytest.approx(0.3)
    assert np.degrees(np.arctan2(pose[0, 2], pose[2, 2])) == pytest.approx(9.0)
    far = ahead(Sighting(before, 1.0), Sighting(now, 1.1), lead_s=60.0)
    assert far[2, 3] == pytest.approx(0.1 + 0.25)  # no further than MAX_LEAD_S
    assert ahead(Sighting(before, 1.0), Sighting(now, 9.0), 0.2) is now  # too long ago to tell
    edge = np.eye(4)
    edge[:3, 3] = [0, -MAX_DISTANCE_M, 0]
    across = Sighting(unflat(moved(MAX_DISTANCE_M)), 1.0)
    assert ahead(across, Sighting(edge, 1.002), 0.25) is edge  # where no pose may be


async def test_extrapolated_poses_are_those_of_the_frame(
    gateway: Gateway, session: str, settings: Settings
) -> None:
    async with working(FakeWorker(settings, step_s=0.05)):
        client = Client(gateway, session, after=-1, extrapolate=True)
        await client.get("frame")
        heads = []
        for step in range(5):
            x_m, at_ms = 0.1 * step, 100.0 * step
            client.send(type="pose", matrix=moved(x_m), sequence=step, client_time_ms=at_ms)
            heads.append((await client.get("frame")).head)
        await client.close()
    asked, shown = 0.1 * heads[-1]["sequence"], heads[-1]["matrix"][3]
    assert asked + 0.03 < shown <= asked + 0.25 + 1e-6  # 1 m/s, 50 ms and more


@pytest.mark.parametrize(("form", "media_type"), [("jpeg", "image/jpeg"), ("webp", "image/webp")])
async def test_pictures_in_another_form(
    gateway: Gateway, session: str, settings: Settings, form: str, media_type: str
) -> None:
    async with working(FakeWorker(settings)):
        client = Client(gateway, session, after=-1, format=form, quality=70)
        frame = await client.get("frame")
        await client.close()
    assert frame.head["media_type"] == media_type
    with Image.open(io.BytesIO(frame.body)) as image:
        assert (image.format, image.size) == (form.upper(), (64, 32))


async def test_raw_and_film(gateway: Gateway, session: str, settings: Settings) -> None:
    async with working(FakeWorker(settings)):
        raw = Client(gateway, session, after=-1, format="raw")
        pixels = np.frombuffer((await raw.get("frame")).body, np.uint8).reshape(32, 64, 3)
        assert pixels[0, 0].tolist() == [0, 80, 160]
        await raw.close()
        film = Client(gateway, session, after=-1, format="h264")
        film.send(type="path", poses=[{"matrix": IDENTITY}] * 4)
        data = b"".join([(await film.get("frame")).body for _ in range(5)])
        await film.close()
    with av.open(io.BytesIO(data)) as container:
        assert len(list(container.decode(video=0))) == 5


async def test_only_the_cameras_asked_for(
    gateway: Gateway, session: str, settings: Settings
) -> None:
    async with working(FakeWorker(settings)):
        walker = Client(gateway, session, after=-1)
        await walker.get("frame")
        second = Client(gateway, session, after=0, cameras=[2])
        for camera in (0, 2, 1, 2):
            walker.send(type="pose", matrix=IDENTITY, camera=camera)
            assert (await walker.get("frame")).head["camera"] == camera
        assert [(await second.get("frame")).head["frame"] for _ in range(2)] == [2, 4]
        await walker.close()
        await second.close()


async def test_quality_falls_while_a_client_is_slow_and_rises_again() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8))
    sink = io.BytesIO()
    image.save(sink, "WEBP", quality=85)
    pictures = Pictures("", 0, adaptive=True)
    sizes = []
    for was_late in (False, True, True, True, True):
        pictures.adaptation.sent(was_late)
        sizes.append(len((await pictures.encoded("image/webp", sink.getvalue(), 0.0)).data))
    assert sizes[0] == len(sink.getvalue())
    assert sizes[1] > sizes[2] > sizes[3] == sizes[4]
    for _ in range(3 * 60):
        pictures.adaptation.sent(False)
    assert pictures.quality == 0  # as the worker made it
    steady = Pictures("", 0, adaptive=False)
    steady.adaptation.sent(True)
    assert steady.quality == 0


async def test_a_slow_client_that_adapts_skips_live_frames_it_was_overtaken_by(
    gateway: Gateway, session: str, settings: Settings
) -> None:
    async with working(FakeWorker(settings)):
        walker = Client(gateway, session, after=-1)
        await walker.get("frame")
        slow = Client(gateway, session, after=-1, adaptive=True)
        await slow.get("frame")
        for _ in range(40):
            walker.send(type="pose", matrix=IDENTITY)
            await walker.get("frame")
        numbers = []
        while not numbers or numbers[-1] < 40:  # it reads again
            numbers.append((await slow.get("frame")).head["frame"])
        assert len(numbers) < 40 and numbers == sorted(set(numbers))
        await walker.close()
        await slow.close()


async def test_statistics_tell_rate_and_latency(
    gateway: Gateway, session: str, settings: Settings
) -> None:
    async with working(FakeWorker(settings, step_s=0.02)):
        client = Client(gateway, session, after=-1)

        async def walk() -> None:
            while True:
                client.send(type="pose", matrix=IDENTITY)
                await asyncio.sleep(0.05)

        walking = asyncio.create_task(walk())
        for _ in range(2):  # the first second has the opening in it
            figures = (await client.get("statistics")).head
        walking.cancel()
        await client.close()
    assert figures["frames_per_s"] > 1 and figures["latency_ms"] >= 20
    assert figures["frames_skipped"] == 0


async def test_who_moves_the_camera_pays_for_live_frames_until_the_day_is_used_up(
    gateway: Gateway, session: str, settings: Settings
) -> None:
    walker = replace(LOCAL, key_id="k1", quota=Quota(frames_per_day=5))
    client = Client(gateway, session, after=-1, principal=walker)
    watcher = Client(gateway, session, after=-1, principal=walker)
    async with working(FakeWorker(settings)):
        await client.get("frame")
        for number in range(1, 6):
            client.send(type="pose", matrix=moved(0.1 * number), sequence=number)
            assert (await client.get("frame")).head["sequence"] == number
            while (await watcher.get("frame")).head["sequence"] != number:
                pass
        client.send(type="pose", matrix=moved(0.6), sequence=6)
        refused = (await client.get("error")).head
        assert (refused["status"], refused["reply_to"]) == (429, 6)
        assert refused["retry_after_s"] > 0 and "frames are used up" in refused["detail"]
        client.send(type="ping")
        await client.get("pong")  # the stream goes on
    await client.close()
    await watcher.close()


@pytest.mark.parametrize("why", ["paused", "another camera", "not read", "rewound"])
async def test_frames_that_a_stream_does_not_show_are_paid_for(
    gateway: Gateway, session: str, settings: Settings, control: ControlPlane, why: str
) -> None:
    """Others may look at them."""
    walker = replace(LOCAL, key_id="k1", quota=Quota(frames_per_day=20))
    cameras = [5] if why == "another camera" else []
    client = Client(gateway, session, after=-1, principal=walker, cameras=cameras)
    worker = running(settings) if why == "rewound" else working(FakeWorker(settings))

    async def num_frames() -> int:
        return (await control.sessions.get(session)).next_frame

    def refusals() -> float | None:
        limit = {"limit": "rate"}
        return gateway.metrics.registry.get_sample_value("mirage_limit_refusals_total", limit)

    async with worker, asyncio.timeout(120):
        while not await num_frames():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        client.send(type="play", paused=why == "paused")
        await client.get("state")
        num_made = 0
        while not refusals():
            if num_made == 4 and why == "rewound":
                asked = await control.branches.rewind(session, RewindIn(frame=0))
                await control.branches.wait(session, asked.id, 60)
            before = await num_frames()
            client.send(type="pose", matrix=moved(0.01 * num_made))
            while not refusals() and await num_frames() == before:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            num_made += await num_frames() - before
            assert num_made <= 22
    assert num_made >= 18
    await client.close()


async def test_what_is_a_request_elsewhere_is_one_on_a_stream(
    gateway: Gateway, session: str
) -> None:
    walker = replace(LOCAL, key_id="k1", quota=Quota(requests_per_s=0.4))  # a bucket of two
    client = Client(gateway, session, principal=walker)
    for number in range(1, 4):
        client.send(type="ping")
        client.send(type="pose", matrix=IDENTITY)
        client.send(type="path", poses=[{"matrix": IDENTITY}], sequence=number)
    for number in range(1, 3):
        assert (await client.get("accepted")).head["reply_to"] == number
    refused = (await client.get("error")).head
    assert (refused["status"], refused["reply_to"]) == (429, 3)
    assert "requests are used up" in refused["detail"]
    client.send(type="ping")
    await client.get("pong")  # the stream goes on
    await client.close()


async def test_a_newer_client_learns_which_protocol_is_spoken(
    gateway: Gateway, session: str
) -> None:
    client = Client(gateway, session, protocol=7)
    assert (await client.get("hello")).head["protocol"] == 1
    await client.close()


async def test_a_paused_stream_takes_so_many_paths_and_no_more(
    gateway: Gateway, session: str, settings: Settings
) -> None:
    client = Client(gateway, session, frames_per_s=100)
    client.send(type="play", paused=True)
    for number in range(settings.max_backlog + 1):
        client.send(type="path", poses=[{"matrix": IDENTITY}], sequence=number)
    for number in range(settings.max_backlog):
        assert (await client.get("accepted")).head["reply_to"] == number
    refused = (await client.get("error")).head
    assert (refused["status"], refused["reply_to"]) == (429, settings.max_backlog)
    assert f"{settings.max_backlog} paths of this stream" in refused["detail"]
    await client.close()
