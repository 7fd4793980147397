"""Worlds in a bucket: a real S3 server (moto's) on the loopback, over plain HTTP as MinIO in a
cluster often is."""

from __future__ import annotations

import asyncio
import logging
import sys
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer

sys.path.insert(0, str(Path(__file__).parent / "worker"))
from noop_worker import open_session, serving
from out_and_back import BACK, OUT, done, forked, images, undisturbed, walk

from service.control.branches import ForkIn, RewindIn, SnapshotIn
from service.control.plane import ControlPlane
from service.errors import SegmentCorrupt, SegmentMissing, StoreDown
from service.local.embedded import free_port
from service.settings import Settings
from service.store.collection import Collection
from service.store.fsck import Fsck
from service.store.objects import ObjectStore, sha256

BUCKET = "worlds"


def make_bucket(endpoint: str) -> None:
    asked = urllib.request.Request(f"{endpoint}/{BUCKET}", method="PUT")
    urllib.request.urlopen(asked).close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadedMotoServer]:
    """With an empty bucket; the environment says what a user's would."""
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    for name, value in {
        "AWS_ENDPOINT": endpoint,
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
    }.items():
        monkeypatch.setenv(name, value)
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # a line for each request
    server = ThreadedMotoServer("127.0.0.1", port, verbose=False)
    server.start()
    make_bucket(endpoint)
    yield server
    server.stop()


@pytest.fixture
async def control(settings: Settings, server: ThreadedMotoServer) -> AsyncIterator[ControlPlane]:
    update = {"store_url": f"s3://{BUCKET}/mirage", "lease_s": 20.0}
    plane = await ControlPlane.open(settings.model_copy(update=update))
    yield plane
    await plane.close()


async def test_objects_are_put_read_listed_and_removed(server: ThreadedMotoServer) -> None:
    store = ObjectStore(f"s3://{BUCKET}/some/folder")
    names = [f"sessions/a/segments/{number}" for number in range(3)]
    assert await store.put_all([(name, name.encode()) for name in names]) == [None] * 3
    await store.put(names[0], names[0].encode())  # again, as after an answer that was lost
    assert await store.read_verified(names[0], sha256(names[0].encode())) == names[0].encode()
    assert sorted(one.path for one in await store.below("sessions/a")) == names
    assert await store.folders("sessions") == ["a"]
    await store.replace(names[0], b"other")
    with pytest.raises(SegmentCorrupt):
        await store.read_verified(names[0], sha256(names[0].encode()))
    await store.delete([*names, "sessions/a/segments/none"])
    assert await store.folders("sessions") == []
    with pytest.raises(SegmentMissing):
        await store.read(names[0])


async def test_a_world_in_a_bucket_does_all_that_one_in_a_folder_does(
    control: ControlPlane, settings: Settings
) -> None:
    async with serving(control, settings):
        whole = await undisturbed(control)
        session = await open_session(control, 3)
        await walk(control, session.id, OUT)
        named = await control.branches.snapshot(session.id, SnapshotIn(name="a"))
        await done(control, session.id, named)
        fork = await forked(control, session.id, ForkIn())
        await walk(control, session.id, OUT)  # two chunks that nobody names
        back = await control.branches.rewind(session.id, RewindIn(snapshot="a"))
        await done(control, session.id, back)
    async with serving(control, settings):  # another worker, which has to read them
        assert images(await walk(control, fork.id, BACK)) == images(whole)
        sweep = Collection(control.redis, control.segments, control.heads, grace_s=0.0)
        assert await sweep.collect(session.id) >= 2
        assert images(await walk(control, session.id, BACK)) == images(whole)
    assert (await Fsck(control, deep=True).check()).is_whole
    await control.sessions.delete(fork.id)
    await control.sweeper.sweep()
    assert await control.segments.ids(fork.id) == []
    assert await control.segments.ids(session.id)


async def test_a_world_is_found_again_in_a_bucket_when_redis_has_lost_it(
    control: ControlPlane, settings: Settings
) -> None:
    async with serving(control, settings):
        whole = await undisturbed(control)
        session = await open_session(control, 3)
        await walk(control, session.id, OUT)
    await control.redis.flushall()
    assert await control.rebuild.ensure() is not None
    async with serving(control, settings):
        assert images(await walk(control, session.id, BACK)) == images(whole)


async def test_a_bucket_that_does_not_answer_is_waited_out_and_not_named(
    server: ThreadedMotoServer,
) -> None:
    store = ObjectStore(f"s3://{BUCKET}")
    server.stop()
    with pytest.raises(StoreDown) as refused:
        await asyncio.wait_for(store.put("x", b"1"), 60)
    assert "127.0.0.1" not in refused.value.detail and BUCKET not in refused.value.detail
    server.start()
    make_bucket("http://{}:{}".format(*server.get_host_and_port()))
    await store.put("x", b"1")
    assert await store.read("x") == b"1"
