"""Observations: cropped to the world's camera, put into its log, refused with the reason."""

from __future__ import annotations

import asyncio
import io
import json
from typing import Any

import httpx
import numpy as np
import pytest
from fake_worker import FakeWorker, working
from PIL import Image
from uploads_made import npy, png

from service.control import keys
from service.control.plane import ControlPlane
from service.control.requests import Generate
from service.control.sessions import IDENTITY
from service.poses import flat
from service.settings import Settings

HERE = json.dumps({"matrix": flat(np.eye(4))})


def mask(width: int, height: int, from_column: int) -> bytes:
    pixels = np.zeros((height, width), np.uint8)
    pixels[:, from_column:] = 255
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


async def observe(http: httpx.AsyncClient, session: str, **form: Any) -> httpx.Response:
    files = {name: form.pop(name) for name in ("image", "depth", "mask") if name in form}
    data = {"pose": HERE} | form
    return await http.post(f"/v1/sessions/{session}/observations", data=data, files=files)


async def last_upload(control: ControlPlane, session: str) -> tuple[dict[str, Any], Any]:
    entry = (await control.redis.xrevrange(keys.log(session), count=1))[0][1]
    message = json.loads(entry[b"body"])
    return message, await control.segments.get_upload(session, message["blob"])


async def test_what_was_seen_reaches_the_log_as_the_world_sees_it(
    http: httpx.AsyncClient, session: str, control: ControlPlane
) -> None:
    depth = np.full((64, 96), 2.0, np.float32)
    place = json.dumps({"position": [1, 0, 0], "quaternion": [0, 0, 0, 1]})
    answer = await observe(
        http,
        session,
        image=png(),
        depth=npy(depth),
        mask=mask(96, 64, 48),
        pose=place,
        axes="ros",
    )
    assert answer.status_code == 202, answer.text
    assert answer.json()["kind"] == "observe"
    message, upload = await last_upload(control, session)
    assert np.reshape(message["pose"], (4, 4))[:3, 3] == pytest.approx([0, 0, 1])  # ROS x = forward
    assert upload.image.shape == (32, 64, 3) and np.unique(upload.depth) == [2.0]
    assert not upload.mask[:, :32].any() and upload.mask[:, 32:].all()


async def test_another_lens_is_cropped_to_the_worlds(
    http: httpx.AsyncClient, control: ControlPlane
) -> None:
    """A wide picture of the same place: its middle is what the world's camera sees."""
    files = {"image": png(96, 64)}
    form = {"fx": "96", "fy": "96", "cx": "48", "cy": "32"}
    session = (await http.post("/v1/sessions", files=files, data=form)).json()["id"]
    pixels = np.zeros((128, 192, 3), np.uint8)
    pixels[32:96, 48:144] = 200  # the middle half
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    wide = {"fx": "96", "fy": "96", "cx": "96", "cy": "64"}
    assert (await observe(http, session, image=buffer.getvalue(), **wide)).status_code == 202
    _, upload = await last_upload(control, session)
    assert (upload.image == 200).mean() > 0.9


async def test_a_picture_that_shows_too_little_is_refused(
    http: httpx.AsyncClient, session: str
) -> None:
    answer = await observe(http, session, image=png(), fov_deg="30")
    assert answer.status_code == 422
    assert "shows less than the world's camera" in answer.json()["detail"]


async def test_it_is_done_once_and_followed_like_a_path(
    http: httpx.AsyncClient, session: str, settings: Settings
) -> None:
    url = f"/v1/sessions/{session}/observations"
    form = {"data": {"pose": HERE, "scale_m": "2.5"}, "files": {"image": png()}}
    headers = {"Idempotency-Key": "look"}
    answers = [await http.post(url, headers=headers, **form) for _ in range(2)]
    assert answers[0].json() == answers[1].json()
    where = answers[0].headers["location"]
    async with working(FakeWorker(settings)), asyncio.timeout(60):
        while (progress := (await http.get(where)).json())["state"] != "done":  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert progress["state"] == "done" and progress["total"] == 0


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no pose": ({"image": png(), "pose": ""}, "pose"),
    "a pose that is a list": ({"image": png(), "pose": json.dumps(flat(np.eye(4)))}, "pose"),
    "half a pose": ({"image": png(), "pose": '{"position": [0, 0, 0]}'}, "pose"),
    "scaled": ({"image": png(), "pose": json.dumps({"matrix": [2.0] * 16})}, "pose.matrix"),
    "too long": ({"image": png(), "pose": " " * 3000}, "pose"),
    "no image": ({}, "image"),
    "axes": ({"image": png(), "axes": "maya"}, "axes"),
    "mask": ({"image": png(), "mask": b"no picture"}, "mask"),
    "mask of another shape": ({"image": png(), "mask": mask(64, 64, 3)}, "mask"),
    "both scales": (
        {"image": png(), "depth": npy(np.ones((64, 96), np.float32)), "scale_m": "2"},
        "body",
    ),
    "scale": ({"image": png(), "scale_m": "0"}, "scale_m"),
    "seed": ({"image": png(), "seed": "3"}, "seed"),
}


@pytest.mark.parametrize("name", BAD)
async def test_bad_observations_are_explained_and_leave_nothing(
    http: httpx.AsyncClient, session: str, control: ControlPlane, name: str
) -> None:
    form, field = BAD[name]
    answer = await observe(http, session, **form)
    assert answer.status_code == 422, answer.text
    assert any(one["field"].startswith(field) for one in answer.json()["errors"]), answer.json()
    assert await control.redis.xlen(keys.log(session)) == 1


async def test_what_is_refused_is_not_stored(
    http: httpx.AsyncClient, session: str, control: ControlPlane, settings: Settings
) -> None:
    """One after the other would fill the disk."""
    stored = len(list(settings.data_dir.rglob("*.npz")))
    pose = {"pose": HERE}
    stale = await http.post(
        f"/v1/sessions/{session}/observations",
        data=pose,
        files={"image": png(seed=1)},
        headers={"If-Match": '"7"'},
    )
    for _ in range(settings.max_backlog - 1):  # the first image waits, too
        await control.requests.append(session, Generate(poses=[IDENTITY]))
    full = await observe(http, session, image=png(seed=2))
    await control.redis.hset(keys.record(session), "state", "failed")  # type: ignore[misc]
    failed = await observe(http, session, image=png(seed=3))
    assert [one.status_code for one in (stale, full, failed)] == [412, 429, 409]
    assert len(list(settings.data_dir.rglob("*.npz"))) == stored
