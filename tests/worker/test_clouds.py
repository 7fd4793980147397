"""Point clouds that the gateway reads from segments are what the worker's memory holds."""

from __future__ import annotations

import io
import struct

import httpx
import numpy as np
import pytest
from export_files import exported, in_pieces
from noop_worker import open_session, picture, pose, serving
from out_and_back import OUT, done, forked, walk
from PIL import Image

from bench.noop import HEIGHT, WIDTH
from service.app import create_app
from service.control.branches import ForkIn, RewindIn
from service.control.plane import ControlPlane
from service.control.requests import Observe
from service.errors import Conflict, SegmentCorrupt
from service.points.cloud import Clouds, mean_colours
from service.points.ledger import rank
from service.settings import Settings
from service.store.segments import COLOURS, Upload
from worker.inspect.history import GREY, replay

EVERY = 10**6
SEEN_M = 1.5  # what the observation shows is nearer than everything else
STRIDE = 8


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Nobody loses a lease here, however busy the machine is."""
    return settings.model_copy(update={"lease_s": 20.0})


async def explored(control: ControlPlane, memory: str = "latent") -> str:
    """A picture, a walk, a rewind, an observation that is not shown, and another walk."""
    session = (await open_session(control, 3, memory=memory)).id
    await walk(control, session, OUT)
    back = await control.branches.rewind(session, RewindIn(frame=4))
    await done(control, session, back)
    seen = Upload(picture(5).image, np.full((HEIGHT, WIDTH), SEEN_M, np.float32))
    blob = await control.segments.put_upload(session, seen)
    ask = await control.requests.append(session, Observe(blob=blob, pose=pose(3)))
    await control.branches.wait(session, ask.id, 60)
    await walk(control, session, OUT)
    return session


async def segments(control: ControlPlane, session: str) -> list[bytes]:
    entries = await control.frames.manifest(session)
    return [await control.segments.get(one.home or session, one.id) for one in entries]


async def check(control: ControlPlane, session: str) -> int:
    """The cloud is what a worker would restore; returns its number of points."""
    head = await control.clouds.head(session)
    cloud = await control.clouds.read(head, EVERY)
    history = replay(head.spec.memory, await segments(control, session))
    restored, colours = history.cloud(), history.cloud().colours
    if head.spec.memory == "rgb":
        tokens = history.memory.state()["tokens"].float()
        colours = ((tokens + 1) * 127.5).round().byte().numpy()
    np.testing.assert_allclose(cloud.positions, restored.positions, atol=1e-5)
    assert cloud.num_remembered == len(cloud.positions) == head.num_points
    apart = np.abs(cloud.colours.astype(int) - colours)  # pictures are stored with a small loss
    assert cloud.colours.shape == colours.shape and np.median([0, *apart.flatten()]) <= 3
    return head.num_points


@pytest.mark.parametrize("memory", ["latent", "rgb", "null"])
async def test_a_cloud_is_what_the_memory_holds(
    control: ControlPlane, settings: Settings, memory: str
) -> None:
    async with serving(control, settings):
        session = await explored(control, memory)
    count = await check(control, session)
    assert count == 0 if memory == "null" else count > 60


async def test_forked_and_imported_worlds(control: ControlPlane, settings: Settings) -> None:
    async with serving(control, settings):
        source = await explored(control)
        fork = await forked(control, source, ForkIn(frame=8))
        await walk(control, fork.id, OUT[:4])
        twin = await control.imports.read(in_pieces(await exported(control, fork.id)))
    assert await check(control, fork.id) == await check(control, twin.id)


async def test_points_of_an_observation_have_the_colours_that_were_seen(
    control: ControlPlane, settings: Settings
) -> None:
    """Though it was not shown, so that its picture is not kept; and grey in old worlds."""
    async with serving(control, settings):
        session = await explored(control)
    head = await control.clouds.head(session)
    cloud = await control.clouds.read(head, EVERY)
    history = replay("latent", await segments(control, session))
    (observed,) = [i for i, one in enumerate(history.sources) if one.observed and i > 0]
    rows = history.cloud().source == observed
    blocks = picture(5).image.reshape(HEIGHT // STRIDE, STRIDE, WIDTH // STRIDE, STRIDE, 3)
    seen = {tuple(one) for one in blocks.mean((1, 3)).round().astype(int).reshape(-1, 3).tolist()}
    assert rows.sum() > 20 and {tuple(one) for one in cloud.colours[rows].tolist()} <= seen
    assert (history.cloud().colours[rows] == cloud.colours[rows]).all()

    old = [without_colours(data) for data in await segments(control, session)]
    assert (replay("latent", old).cloud().colours[rows] == GREY).all()


def without_colours(data: bytes) -> bytes:
    """As it would have been written before there were any."""
    return data.replace(f'"{COLOURS}"'.encode(), b'"colourz"')


async def test_fewer_points_are_an_even_choice(control: ControlPlane, settings: Settings) -> None:
    async with serving(control, settings):
        session = await explored(control)
    head = await control.clouds.head(session)
    every, some = await control.clouds.read(head, EVERY), await control.clouds.read(head, 30)
    assert some.num_remembered == len(every.positions) and len(some.positions) == 30
    state = replay("latent", await segments(control, session)).memory.state()
    order = rank(state["ids"].numpy())
    rows = np.sort(np.argsort(order)[:30])
    np.testing.assert_array_equal(some.positions, every.positions[rows])
    np.testing.assert_array_equal(some.colours, every.colours[rows])


async def test_a_world_that_is_too_long_is_refused(
    control: ControlPlane, settings: Settings
) -> None:
    async with serving(control, settings):
        session = await open_session(control)
        await walk(control, session.id, OUT)
    few = Clouds(control.segments, control.heads, max_bytes=10)
    with pytest.raises(Conflict, match="at most 10 are read"):
        await few.read(await few.head(session.id), EVERY)


async def test_over_http_while_no_worker_runs(control: ControlPlane, settings: Settings) -> None:
    async with serving(control, settings):
        session = await explored(control)
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            answer = await client.get(f"/v1/sessions/{session}/memory/points?axes=ros")
            few = await client.get(f"/v1/sessions/{session}/memory/points?format=glb&max_points=9")
    cloud = await control.clouds.read(await control.clouds.head(session), EVERY)
    head, _, body = answer.content.partition(b"end_header\n")
    rows = np.array(list(struct.iter_unpack("<3f3B", body)))
    np.testing.assert_array_equal(rows[:, 3:], cloud.colours)
    x, y, z = cloud.positions.T
    np.testing.assert_array_equal(rows[:, :3], np.stack([z, -x, -y], 1))
    assert f"version {answer.headers['etag'][1:-1]}".encode() in head
    counts = few.headers["mirage-points"], few.headers["mirage-points-remembered"]
    assert counts == ("9", str(len(rows)))


def test_pictures_that_can_not_be_used_are_told() -> None:
    stream = io.BytesIO()
    Image.new("RGB", (10, 10)).save(stream, "webp")
    for data in (b"nonsense", stream.getvalue()[:-8], stream.getvalue()):
        with pytest.raises(SegmentCorrupt, match=r"can't be opened|has not \(4, 8\) cells"):
            mean_colours(data, (4, 8))
