"""`mirage fsck` finds each kind of damage, mends what needs no guess, leaves whole worlds alone."""

from __future__ import annotations

import asyncio
import errno
import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from noop_worker import open_session, serving
from out_and_back import BACK, OUT, done, forked, images, undisturbed, walk

from service import cli
from service.control import keys
from service.control.branches import ForkIn, RewindIn
from service.control.plane import ControlPlane
from service.errors import InvalidRequest
from service.local.embedded import EmbeddedValkey
from service.settings import Settings
from service.store.collection import Collection
from service.store.fsck import Findings, Fsck
from service.store.segments import segment_id, segment_path

pytestmark = pytest.mark.usefixtures("no_head_was_due")


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Nobody loses a lease here, however busy the machine is."""
    return settings.model_copy(update={"lease_s": 20.0})


@pytest.fixture
async def worlds(control: ControlPlane, settings: Settings) -> tuple[str, str]:
    """A world of three segments and a fork of it with one more."""
    async with serving(control, settings):
        source = await open_session(control, 3)
        await walk(control, source.id, OUT)
        fork = await forked(control, source.id, ForkIn())
        await walk(control, fork.id, OUT[:1])
    return source.id, fork.id


async def check(control: ControlPlane, *, deep: bool = False) -> Findings:
    return await Fsck(control, deep=deep).check()


def stored(settings: Settings, path: str) -> Path:
    return settings.data_dir / "segments" / path


async def test_whole_worlds_are_whole(control: ControlPlane, worlds: tuple[str, str]) -> None:
    found = await check(control, deep=True)
    assert found.is_whole and (found.num_sessions, found.num_segments) == (2, 7)
    assert found.garbage == []


async def test_missing_and_damaged_segments_are_named_with_all_they_hurt(
    control: ControlPlane, settings: Settings, worlds: tuple[str, str]
) -> None:
    source, fork = worlds
    entries = await control.frames.manifest(source)
    stored(settings, segment_path(source, entries[0].id)).unlink()
    stored(settings, segment_path(source, entries[1].id)).write_bytes(b"rotten")
    found = await Fsck(control, deep=True).repair()
    assert not found.is_whole
    assert found.missing == {source: [entries[0].id], fork: [entries[0].id]}
    assert found.corrupt == {source: [entries[1].id], fork: [entries[1].id]}


async def test_what_only_the_store_has_is_rebuilt_or_reported(
    control: ControlPlane, settings: Settings, worlds: tuple[str, str]
) -> None:
    source, fork = worlds
    lost = (await open_session(control)).id
    shutil.rmtree(stored(settings, f"sessions/{lost}/heads"))
    for one in (source, fork, lost):
        await control.redis.delete(keys.record(one), keys.manifest(one))
        await control.redis.zrem(keys.EXPIRY, one)
    found = await check(control)
    assert sorted(found.unknown_to_redis) == sorted(worlds) and lost in found.lost
    repaired = await Fsck(control).repair()
    assert sorted(repaired.repaired) == sorted(f"rebuilt {one}" for one in worlds)
    again = await check(control)
    assert again.unknown_to_redis == [] and list(again.lost) == [lost]
    async with serving(control, settings):
        whole = await undisturbed(control)
        assert images(await walk(control, source, BACK)) == images(whole)


async def test_forks_that_their_source_does_not_know_are_registered(
    control: ControlPlane, worlds: tuple[str, str]
) -> None:
    source, fork = worlds
    await control.redis.delete(keys.forks(source))
    assert (await check(control)).forks_not_registered == {source: [fork]}
    assert (await Fsck(control).repair()).is_whole
    assert (await check(control)).is_whole


async def test_a_record_that_contradicts_its_manifest_is_reported(
    control: ControlPlane, worlds: tuple[str, str]
) -> None:
    await control.redis.rpop(keys.manifest(worlds[0]))
    assert "3 segments" in (await check(control)).inconsistent[worlds[0]]


async def test_somebody_chooses_where_an_uncertain_world_ends(
    control: ControlPlane, settings: Settings, worlds: tuple[str, str]
) -> None:
    source, _ = worlds
    last = (await control.frames.manifest(source))[-1]
    data = await control.segments.get(source, last.id)
    await control.segments.put(source, segment_id(2, "w0.1", data), data)
    await control.redis.delete(keys.record(source), keys.manifest(source), keys.MARKER)
    await control.rebuild.ensure()
    found = await check(control)
    assert not found.is_whole and last.id in found.ambiguous[source]
    assert await control.collection.garbage(source) == []
    with pytest.raises(InvalidRequest, match="these do"):
        await Fsck(control).choose(source, "00000002-w0.1-nonsense")
    await Fsck(control).choose(source, last.id)
    assert (await check(control)).is_whole
    async with serving(control, settings):
        whole = await undisturbed(control)
        assert images(await walk(control, source, BACK)) == images(whole)


@pytest.fixture(params=["missing", "rotten", "rotten at the end"])
async def gap(
    request: pytest.FixtureRequest, control: ControlPlane, settings: Settings
) -> tuple[str, Path, bytes]:
    """A world rebuilt without one of its five segments; that one's place, and what lay there."""
    async with serving(control, settings):
        session = (await open_session(control, 3)).id
        await walk(control, session, [*OUT, *BACK])
    entries = await control.frames.manifest(session)
    lost = entries[-1 if "end" in request.param else 2]
    place = stored(settings, segment_path(session, lost.id))
    data = place.read_bytes()
    place.unlink() if request.param == "missing" else place.write_bytes(b"rot" + data[3:])
    await rebuilt(control, session)
    return session, place, data


async def rebuilt(control: ControlPlane, session: str) -> None:
    await control.redis.delete(keys.record(session), keys.manifest(session), keys.MARKER)
    await control.rebuild.ensure()


async def test_a_world_with_a_gap_stays_shut_and_whole_until_it_is_mended(
    control: ControlPlane, settings: Settings, gap: tuple[str, Path, bytes]
) -> None:
    session, place, data = gap
    shut = await control.sessions.get(session)
    assert shut.state == "failed" and shut.error and "--repair" in shut.error["detail"]
    left = await control.segments.ids(session)
    found = await Fsck(control, deep=True).repair()
    assert not found.is_whole and found.ambiguous == {session: [shut.tip]}
    assert found.unreached == {session: left[shut.num_segments :]}
    eager = Collection(control.redis, control.segments, control.heads, 0.0)
    assert [await eager.collect(session) for _ in range(2)] == [0, 0]
    await control.redis.hset(keys.record(session), "expires_s", "1")
    await control.redis.zadd(keys.EXPIRY, {session: 1})
    await control.sweeper.expire()
    assert await control.segments.ids(session) == left
    place.write_bytes(data)
    again = await check(control)
    assert again.shut == [session] and again.ambiguous == {} and not again.is_whole
    repaired = await Fsck(control).repair()
    assert repaired.is_whole and repaired.repaired == [f"opened {session}"]
    opened = await control.sessions.get(session)
    assert opened.num_segments == 5 and opened.expires_s > time.time()
    async with serving(control, settings):
        frames = await walk(control, session, OUT)
        twin = await open_session(control, 3)
        await walk(control, twin.id, [*OUT, *BACK])
        assert images(frames) == images(await walk(control, twin.id, OUT))


async def test_a_world_with_a_gap_ends_before_it_if_somebody_says_so(
    control: ControlPlane, settings: Settings, gap: tuple[str, Path, bytes]
) -> None:
    session, _, _ = gap
    shut = await control.sessions.get(session)
    with pytest.raises(InvalidRequest, match=f"these do: {shut.tip}"):
        await Fsck(control).choose(session, (await control.segments.ids(session))[-1])
    await Fsck(control).choose(session, shut.tip)
    assert (await check(control)).is_whole
    opened = await control.sessions.get(session)
    assert (opened.state, opened.tip, opened.branch) == ("idle", shut.tip, shut.branch + 1)
    assert opened.branch_first_frame == shut.next_frame
    async with serving(control, settings):
        await walk(control, session, OUT)
    eager = Collection(control.redis, control.segments, control.heads, 0.0)
    await eager.collect(session)
    assert len(await control.segments.ids(session)) == shut.num_segments + 2
    await rebuilt(control, session)
    assert (await check(control)).is_whole


async def test_what_lies_lawfully_behind_or_beside_the_chain_is_no_gap(
    control: ControlPlane, settings: Settings
) -> None:
    """What a rewind left behind, and what a refused commit did, even if it can't be read."""
    async with serving(control, settings):
        session = (await open_session(control, 3)).id
        await walk(control, session, [*OUT, *BACK])
        behind = await control.frames.manifest(session)
        await done(control, session, await control.branches.rewind(session, RewindIn(frame=4)))
        await walk(control, session, OUT)
    await control.segments.put(session, segment_id(2, "w0.1", b"refused"), b"refused")
    stored(settings, segment_path(session, behind[3].id)).unlink()  # as if half collected
    before = await control.sessions.get(session)
    await rebuilt(control, session)
    assert (await check(control)).is_whole
    after = await control.sessions.get(session)
    assert (after.state, after.tip, after.num_segments) == ("idle", before.tip, 4)


async def test_garbage_is_counted_and_harms_nobody(
    control: ControlPlane, settings: Settings, worlds: tuple[str, str]
) -> None:
    source, _ = worlds
    await control.segments.put(source, segment_id(9, "w0.1", b"orphan"), b"orphan")
    eager = await ControlPlane.open(settings.model_copy(update={"collect_grace_s": 0.0}))
    found = await check(eager)
    assert found.is_whole and found.garbage_bytes >= 6
    assert (await Fsck(eager).repair()).is_whole
    assert (await check(eager)).garbage == []
    await eager.close()


async def test_the_command(
    control: ControlPlane,
    settings: Settings,
    worlds: tuple[str, str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("MIRAGE_REDIS_URL", settings.redis_url)
    place = ["--data-dir", str(settings.data_dir)]
    options = cli.parser().parse_args(["fsck", "--json", "--repair", *place])
    assert await options_run(options) == 0
    assert json.loads(capsys.readouterr().out)["is_whole"] is True
    file = tmp_path / "worlds" / "of today" / "world.tar"
    options = cli.parser().parse_args(["export", worlds[1], str(file), *place])
    assert await options_run(options) == 0 and file.stat().st_size > 10_000
    again = cli.parser().parse_args(["export", worlds[1], str(file.with_name("b.tar")), *place])
    with monkeypatch.context() as full, pytest.raises(OSError, match="No space left"):
        full.setattr(Path, "rename", no_room)
        await options_run(again)
    assert list(file.parent.iterdir()) == [file]
    options = cli.parser().parse_args(["import", str(file), "--owner", "ann", *place])
    assert await options_run(options) == 0
    told = capsys.readouterr()
    assert told.err.splitlines()[-1] == f"the id of the session that {file} has become"
    assert "session imported" not in told.err  # the audit is for servers' logs
    name = told.out.split()[-1]
    assert (await control.sessions.get(name)).next_frame == 10
    options = cli.parser().parse_args(["import", str(file), "--owner", "ann b", *place])
    with pytest.raises(InvalidRequest, match=r"--owner 'ann b': must be .* letters of English"):
        await options_run(options)  # no key could have that owner


async def test_another_store_is_said_once(
    settings: Settings,
    worlds: tuple[str, str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MIRAGE_REDIS_URL", settings.redis_url)
    here = stored(settings, "sessions")
    here.rename(here.with_name("elsewhere"))  # the marker stays: no process would refuse to start
    command = ["fsck", "--data-dir", str(settings.data_dir)]
    assert await options_run(cli.parser().parse_args(command)) == 1
    counted, said, result = capsys.readouterr().out.splitlines()
    assert (counted, result) == ("2 sessions, 7 segments", "not every world is whole")
    assert "this store is empty, or another one" in said
    assert all(name in said for name in worlds)
    assert await options_run(cli.parser().parse_args([*command, "--json"])) == 1
    missing = json.loads(capsys.readouterr().out)["missing"]
    assert sum(map(len, missing.values())) == 7

    (here / "s1" / "heads").mkdir(parents=True)
    (here / "s1" / "heads" / "h.json.z").write_bytes(b"of another service")
    assert await options_run(cli.parser().parse_args(command)) == 1
    assert "unknown to Redis: 1 sessions of this store (s1)" in capsys.readouterr().out
    assert await options_run(cli.parser().parse_args([*command, "--repair", "--json"])) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["unknown_to_redis"] == ["s1"] and not found["repaired"] and not found["lost"]


def no_room(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


async def options_run(options: object) -> int:
    """The command runs a loop of its own, so it runs in a thread."""
    code: int = await asyncio.to_thread(options.run, options)  # type: ignore[attr-defined]
    return code


def contents(folder: Path) -> dict[Path, tuple[bytes, int]]:
    return {
        path: (path.read_bytes() if path.is_file() else b"", path.stat().st_mtime_ns)
        for path in folder.rglob("*")
    }


async def checked(folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What the command finds there, without a server and without changing anything."""
    before = contents(folder)
    options = cli.parser().parse_args(["fsck", "--deep", "--json", "--data-dir", str(folder)])
    code = await options_run(options)
    assert contents(folder) == before
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert code == (0 if found["is_whole"] else 1)
    return found


async def test_a_backup_is_checked_and_stays_as_it_is(
    settings: Settings,
    gap: tuple[str, Path, bytes],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    monkeypatch.delenv("MIRAGE_REDIS_URL", raising=False)
    session, place, data = gap
    backup = tmp_path_factory.mktemp("backup")
    shutil.copytree(settings.data_dir / "segments", backup / "segments")
    found = await checked(backup, capsys)
    assert found["ambiguous"].keys() == found["unreached"].keys() == {session}
    (backup / place.relative_to(settings.data_dir)).write_bytes(data)
    again = await checked(backup, capsys)
    assert again["is_whole"] and again["num_segments"] == 5


async def test_a_world_is_exported_from_a_backup_that_stays_as_it_is(
    control: ControlPlane,
    settings: Settings,
    worlds: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    monkeypatch.delenv("MIRAGE_REDIS_URL", raising=False)
    backup, file = (tmp_path_factory.mktemp(name) for name in ("backup", "file"))
    file /= "world.tar"
    shutil.copytree(settings.data_dir / "segments", backup / "segments")
    before = contents(backup)
    options = cli.parser().parse_args(["export", worlds[1], str(file), "--data-dir", str(backup)])
    assert await options_run(options) == 0
    assert contents(backup) == before
    exported = await control.exports.open(worlds[1])
    segments = [chunk async for chunk in exported.chunks()][1:]  # before them: what is said of it
    assert file.read_bytes().endswith(b"".join(segments))


async def test_a_stopped_servers_own_valkey_is_believed_and_stays_as_it_is(
    settings: Settings,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.delenv("MIRAGE_REDIS_URL", raising=False)
    async with EmbeddedValkey(tmp_path) as url:
        plane = await ControlPlane.open(settings.model_copy(update={"redis_url": url}))
        session = await open_session(plane)
        await plane.close()
    shutil.rmtree(stored(settings, f"sessions/{session.id}/heads"))  # a rebuild would find none
    found = await checked(tmp_path, capsys)
    assert found["is_whole"] and found["num_sessions"] == 1


def test_a_folder_without_segments_is_not_given_any(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("MIRAGE_REDIS_URL", raising=False)
    assert cli.main(["fsck", "--data-dir", str(tmp_path)]) == 1
    assert "can't be opened" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [["fsck"], ["export", "s1", "world.tar"]])
def test_a_folder_that_is_not_there_is_said_so_and_not_made(
    command: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MIRAGE_REDIS_URL", raising=False)
    assert cli.main([*command, "--data-dir", str(tmp_path / "none")]) == 1
    assert "there is no data folder" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
