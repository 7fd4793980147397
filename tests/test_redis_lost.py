"""Valkey is killed under a walk: with its files nothing is lost, without them worlds are rebuilt
from the segment store and go on bit for bit."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest
from httpx import ASGITransport
from redis.exceptions import OutOfMemoryError

sys.path.insert(0, str(Path(__file__).parent / "worker"))
from noop_worker import open_session, pose, read_until, serving
from out_and_back import BACK, OUT, done, forked, images, undisturbed, walk

from service.app import create_app
from service.auth.grants import Grants
from service.auth.guard import Guard
from service.auth.keyring import Keyring, parse_credential
from service.auth.principal import KEY_SCOPES, Scope
from service.control import keys
from service.control.branches import ForkIn, RewindIn, SnapshotIn
from service.control.heads import head_path
from service.control.plane import ControlPlane
from service.control.requests import Generate, RequestState
from service.errors import ConfigurationError, StoreDown
from service.local.embedded import EmbeddedValkey, free_port
from service.settings import Settings
from service.store.fsck import Fsck
from service.store.objects import Listed
from service.store.rebuild import MARKER
from service.store.segments import segment_id

pytestmark = pytest.mark.usefixtures("no_head_was_due")


class Server:
    """A Valkey that can be killed, and come back with or without its data."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.valkey = EmbeddedValkey(folder, self.port)

    async def restart(self, *, empty: bool) -> None:
        assert self.valkey.pid is not None
        os.kill(self.valkey.pid, signal.SIGKILL)
        await self.valkey.stop()
        if empty:
            shutil.rmtree(self.folder / "valkey")
        self.valkey = EmbeddedValkey(self.folder, self.port)
        await self.valkey.start()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    server = Server(tmp_path)
    await server.valkey.start()
    yield server
    await server.valkey.stop()


@pytest.fixture
async def plane(server: Server, settings: Settings) -> AsyncIterator[ControlPlane]:
    plane = await ControlPlane.open(with_server(settings, server))
    yield plane
    await plane.close()


def with_server(settings: Settings, server: Server) -> Settings:
    return settings.model_copy(update={"redis_url": server.valkey.url})


async def test_killed_with_its_files_in_the_middle_of_a_walk_nothing_is_lost(
    plane: ControlPlane, server: Server, settings: Settings
) -> None:
    settings = with_server(settings, server)
    poses = [pose(i) for i in range(1, 49)]
    async with serving(plane, settings):
        twin = await open_session(plane, 3)
        whole = await walk(plane, twin.id, poses)
        session = await open_session(plane, 3)
        path = await plane.requests.append(session.id, Generate(poses=poses))
        await read_until(plane, session.id, 12)
        before = await plane.sessions.get(session.id)
        await server.restart(empty=False)
        after = await plane.sessions.get(session.id)
        assert after.next_frame >= before.next_frame and after.version >= before.version
        progress = await plane.branches.wait(session.id, path.id, 60)
        assert progress.state is RequestState.DONE
        frames = []
        while len(frames) < 49:
            frames += await plane.frames.read(session.id, after=len(frames) - 1)
    assert [frame.frame for frame in frames] == list(range(49))
    assert images(frames) == images(whole)


async def test_killed_and_empty_what_only_a_snapshot_uses_stays(
    plane: ControlPlane, server: Server, settings: Settings
) -> None:
    settings = with_server(settings, server)
    async with serving(plane, settings):
        source = await open_session(plane, 3)
        await walk(plane, source.id, OUT)
        middle = await forked(plane, source.id, ForkIn())
        await walk(plane, middle.id, OUT)
        last = await forked(plane, middle.id, ForkIn())
        far = images(await walk(plane, last.id, OUT[:1]))
        for ask in (
            plane.branches.snapshot(last.id, SnapshotIn(name="far")),
            plane.branches.rewind(last.id, RewindIn(frame=4)),  # nothing of `middle` is left
        ):
            await done(plane, last.id, await ask)
    await server.restart(empty=True)
    again = await ControlPlane.open(settings)
    await again.sessions.delete(middle.id)
    await again.sweeper.empty_graves()
    async with serving(again, settings):
        back = await again.branches.rewind(last.id, RewindIn(snapshot="far"))
        await done(again, last.id, back)
        assert images(await walk(again, last.id, BACK))[: len(far)] == far
    await again.close()


async def test_killed_and_empty_every_world_is_rebuilt_from_the_store(
    plane: ControlPlane, server: Server, settings: Settings
) -> None:
    settings = with_server(settings, server)
    async with serving(plane, settings):
        whole = await undisturbed(plane)
        walked, rewound, source, gone = [await open_session(plane, 3) for _ in range(4)]
        await walk(plane, walked.id, OUT)
        await walk(plane, rewound.id, [*OUT, *OUT])
        named = await plane.branches.snapshot(rewound.id, SnapshotIn(name="far"))
        await done(plane, rewound.id, named)
        back = await plane.branches.rewind(rewound.id, RewindIn(frame=8))
        await done(plane, rewound.id, back)
        await walk(plane, source.id, OUT)
        fork = await forked(plane, source.id, ForkIn())
        await walk(plane, gone.id, OUT[:1])
        await plane.sessions.delete(gone.id)
    ring = Keyring(plane.redis, plane.kept)
    (key, text), (revoked, _) = [
        await ring.create(who, frozenset(KEY_SCOPES)) for who in ("ann", "bob")
    ]
    await ring.revoke(revoked.id)
    _, share = await Grants(plane.redis, plane.kept).share(
        key.principal, walked.id, key.scopes, 3600
    )
    unopened = await open_session(plane, 5)
    before = {one.id: one for one in (await plane.sessions.list()).items}
    await server.restart(empty=True)
    again = await ControlPlane.open(settings)
    after = {one.id: one for one in (await again.sessions.list()).items}
    assert after.keys() == before.keys() and gone.id not in after
    for name, one in after.items():
        same = {"tip", "next_frame", "num_segments", "num_points", "num_bytes", "branch", "seed"}
        assert one.model_dump(include=same) == before[name].model_dump(include=same)
        assert one.version > before[name].version
    assert [one.name for one in await again.branches.snapshots(rewound.id)] == ["far"]
    assert await again.rebuild.ensure() is None
    guard = Guard(again.redis, again.kept, required=True)
    assert [one.id for one in await guard.keyring.list()] == [key.id]
    assert (await guard.keyring.recognise(*parse_credential(text)[1:])).owner == "ann"
    assert await guard.shared_world(share) == walked.id
    async with serving(again, settings):
        for one in (walked.id, rewound.id, fork.id, source.id):
            assert images(await walk(again, one, BACK)) == images(whole)
        await walk(again, unopened.id, OUT[:1])
        await again.sessions.delete(source.id)
        await again.sweeper.empty_graves()  # and its segments stay, as the fork uses them
        back = await again.branches.rewind(fork.id, RewindIn(frame=4))
        await done(again, fork.id, back)
        await walk(again, fork.id, OUT[4:])
    await again.close()


async def test_a_worker_notices_by_itself(
    plane: ControlPlane, server: Server, settings: Settings
) -> None:
    settings = with_server(settings, server)
    async with serving(plane, settings):
        session = await open_session(plane, 3)
        await walk(plane, session.id, OUT)
        await server.restart(empty=True)
        async with asyncio.timeout(60):
            while await plane.rebuild.is_needed():  # noqa: ASYNC110 another process changes it
                await asyncio.sleep(0.05)
        await walk(plane, session.id, BACK)


async def test_while_worlds_are_rebuilt_nobody_hears_that_there_are_none(
    plane: ControlPlane, server: Server, settings: Settings
) -> None:
    session = await open_session(plane)
    closed = with_server(settings, server).model_copy(update={"require_keys": True})
    apps = [create_app(one) for one in (with_server(settings, server), closed)]
    async with AsyncExitStack() as stack:
        clients = []
        for app in apps:
            await stack.enter_async_context(app.router.lifespan_context(app))
            client = httpx.AsyncClient(
                transport=ASGITransport(app=app), base_url="http://localhost"
            )
            clients.append(await stack.enter_async_context(client))
        url = f"/v1/sessions/{session.id}"
        async with plane.redis.pipeline(transaction=True) as pipe:
            pipe.set(keys.REBUILDING, "another process is at it")
            pipe.delete(keys.MARKER, keys.record(session.id))
            await pipe.execute()
        for client in clients:
            answer = await client.get(url)
            assert answer.status_code == 503 and "rebuilt" in answer.json()["detail"]
            assert answer.headers["retry-after"] == "1"
        await plane.redis.delete(keys.REBUILDING)
        while await plane.rebuild.is_needed():
            await plane.rebuild.ensure()
        assert [(await client.get(url)).status_code for client in clients] == [200, 401]


async def test_a_tip_that_is_not_certain_is_reported_and_the_session_stays_shut(
    plane: ControlPlane, server: Server, settings: Settings
) -> None:
    settings = with_server(settings, server)
    async with serving(plane, settings):
        session = await open_session(plane, 3)
        await walk(plane, session.id, OUT)
        middle = await open_session(plane, 3)
        await walk(plane, middle.id, OUT)
    for one, at in ((session, 2), (middle, 1)):  # what a worker that died left behind
        entry = (await plane.frames.manifest(one.id))[at]
        data = await plane.segments.get(one.id, entry.id)
        orphan = segment_id(at, "w0.1", data)
        await plane.segments.put(one.id, orphan, data)
    await plane.redis.delete(keys.MARKER, keys.record(session.id), keys.record(middle.id))
    report = await plane.rebuild.ensure()
    assert report is not None and report.rebuilt == [middle.id]
    assert len(report.ambiguous[session.id].tips) == 2
    shut = await plane.sessions.get(session.id)
    assert shut.state == "failed" and shut.error and "w0.1" in shut.error["detail"]
    assert shut.next_frame == 5
    assert (await plane.sessions.get(middle.id)).next_frame == 9


async def test_without_the_head_of_a_rewind_what_came_after_it_is_in_doubt(
    plane: ControlPlane, server: Server, settings: Settings
) -> None:
    settings = with_server(settings, server)
    async with serving(plane, settings):
        session = await open_session(plane, 3)
        await walk(plane, session.id, OUT)
        old = set(await plane.heads.ids(session.id))
        back = await plane.branches.rewind(session.id, RewindIn(frame=4))
        await done(plane, session.id, back)
        await walk(plane, session.id, BACK)
    tip = (await plane.sessions.get(session.id)).tip
    for name in set(await plane.heads.ids(session.id)) - old:
        (settings.data_dir / "segments" / head_path(session.id, name)).write_bytes(b"rotten")
    await plane.redis.delete(keys.MARKER, keys.record(session.id), keys.manifest(session.id))
    report = await plane.rebuild.ensure()
    assert report is not None and tip in report.ambiguous[session.id].unreached
    shut = await plane.sessions.get(session.id)
    assert shut.state == "failed"
    await Fsck(plane).choose(session.id, shut.tip)
    opened = await plane.sessions.get(session.id)
    assert (opened.state, opened.branch) == ("idle", 3)  # what came after it is of branch 2
    await plane.redis.delete(keys.MARKER, keys.record(session.id), keys.manifest(session.id))
    report = await plane.rebuild.ensure()
    assert report is not None and report.rebuilt == [session.id]


async def test_what_the_store_has_lost_too_is_reported(
    plane: ControlPlane, settings: Settings
) -> None:
    session = await open_session(plane)
    folder = settings.data_dir / "segments" / "sessions" / session.id
    shutil.rmtree(folder / "heads")
    await plane.redis.delete(keys.MARKER, keys.record(session.id))
    report = await plane.rebuild.ensure()
    assert report is not None and report.rebuilt == []
    assert report.lost == {session.id: "no head object lies in the store"}


async def test_a_rebuild_that_broke_off_and_begins_again_changes_nothing_it_has_done(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = sorted([(await open_session(plane)).id for _ in range(2)])
    for one in (first, second):
        await plane.redis.delete(keys.MARKER, keys.record(one), keys.manifest(one))
    below = plane.segments.objects.below

    async def broken(folder: str) -> list[Listed]:
        if folder.endswith(second):
            raise StoreDown("the store is down", retry_after_s=1.0)
        return await below(folder)

    with monkeypatch.context() as patched:
        patched.setattr(plane.segments.objects, "below", broken)
        with pytest.raises(StoreDown):
            await plane.rebuild.ensure()
    heads = await plane.heads.ids(first)
    await plane.redis.delete(keys.REBUILDING)  # its time is over
    await plane.redis.zrem(keys.EXPIRY, first)  # as if it had broken off before
    assert await plane.rebuild.ensure() is not None
    assert await plane.heads.ids(first) == heads
    version = (await plane.sessions.get(first)).version
    assert int(heads[-1].partition("-")[0]) == version
    assert await plane.redis.zscore(keys.EXPIRY, first)
    assert (await plane.sessions.get(second)).state == "waiting"


async def test_strays_in_the_store_are_in_nobodys_way(
    plane: ControlPlane, settings: Settings
) -> None:
    session = await open_session(plane)
    await plane.heads.checkpoint(session.id)
    folder = settings.data_dir / "segments" / "sessions"
    for place in ("segments", "heads", "snapshots", "blobs"):
        for name in (".nfs0001", "~stray"):  # before and after all others in order
            path = folder / session.id / place / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"stray")
    (folder / ".DS_Store").write_bytes(b"stray")
    heads = await plane.heads.ids(session.id)
    assert len(heads) == keys.HEADS_KEPT
    await plane.heads.prune(session.id)
    assert await plane.heads.ids(session.id) == heads
    assert (await Fsck(plane).check()).is_whole
    await plane.redis.delete(keys.MARKER, keys.record(session.id))
    report = await plane.rebuild.ensure()
    assert report is not None and report.rebuilt == [session.id] and report.lost == {}


async def test_a_full_redis_becomes_empty_again(plane: ControlPlane, settings: Settings) -> None:
    deleted, *expired = [await open_session(plane) for _ in range(4)]
    for one in (deleted, *expired):
        for _ in range(10):
            await plane.redis.xadd(keys.frames(one.id), {"image": bytes(100_000)})
    for one in expired:
        await plane.redis.hset(keys.record(one.id), "expires_s", "1")
        await plane.redis.zadd(keys.EXPIRY, {one.id: 1})

    async def fill(num_bytes: int) -> None:
        """This much has to go before there is room for anything."""
        used = (await plane.redis.info("memory"))["used_memory"]
        await plane.redis.config_set("maxmemory", used - num_bytes)
        with pytest.raises(OutOfMemoryError):
            await plane.redis.set("anything", "")

    await fill(200_000)
    await plane.sessions.delete(deleted.id)
    await fill(1_500_000)  # more than the first that expires gives back
    for _ in range(2):
        await plane.sweeper.sweep()
    for name in await plane.redis.zrange(keys.GRAVES, 0, -1):
        assert await plane.collection.bury(name.decode()) == 0  # the second look
    assert await plane.redis.zcard(keys.EXPIRY) == await plane.redis.zcard(keys.GRAVES) == 0
    await plane.redis.set("anything", "")
    assert list((settings.data_dir / "segments").rglob("*.npz")) == []


async def test_a_redis_of_another_service_is_refused(
    plane: ControlPlane, server: Server, settings: Settings, tmp_path: Path
) -> None:
    folder = tmp_path / "other" / "segments"
    folder.mkdir(parents=True)
    (folder / MARKER).write_text('{"marker": "of another Redis"}')
    other = settings.model_copy(update={"data_dir": tmp_path / "other"})
    with pytest.raises(ConfigurationError, match="one store for each Redis"):
        await ControlPlane.open(with_server(other, server))


async def test_an_empty_store_is_refused_where_redis_has_worlds(
    plane: ControlPlane, server: Server, settings: Settings, tmp_path: Path
) -> None:
    """A volume that is not mounted: new worlds would lie under it, and old ones be missing."""
    other = settings.model_copy(update={"data_dir": tmp_path / "other"})
    await (await ControlPlane.open(with_server(other, server))).close()  # nothing is at stake yet
    shutil.rmtree(tmp_path / "other")
    await open_session(plane)
    with pytest.raises(ConfigurationError, match=r"store is empty, .* knows 1 sessions: mount"):
        await ControlPlane.open(with_server(other, server))
    assert not (tmp_path / "other" / "segments" / MARKER).exists()
    marker = settings.data_dir / "segments" / MARKER
    told = marker.read_bytes()
    marker.unlink()  # alone: the worlds are there
    await (await ControlPlane.open(with_server(settings, server))).close()
    assert marker.read_bytes() == told


async def test_metrics_say_that_redis_is_away_also_where_keys_are_required(
    plane: ControlPlane, server: Server, settings: Settings
) -> None:
    keyring = Keyring(plane.redis, plane.kept)
    scopes = (frozenset({Scope.METRICS}), KEY_SCOPES, frozenset({Scope.METRICS}))
    scrapes, does_all, unseen = [(await keyring.create("ann", one))[1] for one in scopes]
    limited = (await keyring.create("ann", scopes[0], requests_per_s=0.1))[1]
    app = create_app(with_server(settings, server).model_copy(update={"require_keys": True}))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=ASGITransport(app=app, raise_app_exceptions=False),
            base_url="http://localhost",
        ) as client,
    ):

        async def scrape(key: str) -> httpx.Response:
            return await client.get("/metrics", headers={"Authorization": f"Bearer {key}"})

        assert "mirage_workers_alive 0.0" in (await scrape(scrapes)).text
        assert (await scrape(does_all)).status_code == 200
        counted = [(await scrape(limited)).status_code for _ in range(2)]
        assert counted == [200, 429]
        await server.valkey.stop()
        for key in (scrapes, limited):
            assert "mirage_workers_alive NaN" in (await scrape(key)).text
        elsewhere = {"Authorization": f"Bearer {limited}"}
        assert (await client.get("/v1/sessions", headers=elsewhere)).status_code == 403
        forged = scrapes[:-1] + ("a" if scrapes[-1] != "a" else "b")
        assert (await scrape(forged)).status_code == 401
        assert [(await scrape(one)).status_code for one in (does_all, unseen)] == [503, 503]
        await server.valkey.start()
        await keyring.revoke(parse_credential(scrapes)[1])
        assert (await scrape(scrapes)).status_code == 401
        await server.valkey.stop()
        assert (await scrape(scrapes)).status_code == 503


async def test_processes_that_start_together_agree_on_the_marker(
    server: Server, settings: Settings
) -> None:
    found = with_server(settings, server)
    planes = await asyncio.gather(*(ControlPlane.open(found) for _ in range(4)))
    for plane in [*planes, await ControlPlane.open(found)]:
        assert await plane.rebuild.ensure() is None
        await plane.close()
