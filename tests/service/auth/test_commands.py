"""`mirage keys`: where it looks, what it prints."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from service.auth.keyring import Keyring, parse_credential
from service.auth.principal import Scope
from service.cli import main
from service.control.plane import ControlPlane
from service.settings import Settings


@pytest.mark.parametrize("is_before", [True, False])
async def test_the_place_stands_before_the_verb_or_behind_it(
    settings: Settings,
    control: ControlPlane,
    capsys: pytest.CaptureFixture[str],
    is_before: bool,
) -> None:
    place = ["--data-dir", str(settings.data_dir), "--redis-url", settings.redis_url]

    async def keys(*words: str) -> str:
        verb, *rest = words
        command = ["keys", *place, verb, *rest] if is_before else ["keys", verb, *rest, *place]
        assert await asyncio.to_thread(main, command) == 0
        return capsys.readouterr().out

    text = (await keys("create", "--owner", "ann", "--frames-per-day", "9")).strip()
    _, name, digest = parse_credential(text)
    key = await Keyring(control.redis, control.kept).recognise(name, digest)
    assert (key.owner, key.frames_per_day) == ("ann", 9)
    assert f"{key.id}  ann" in await keys("list")
    await keys("revoke", text if is_before else key.id)  # who finds a key somewhere has all of it
    assert await keys("list") == ""
    assert await asyncio.to_thread(main, ["keys", "list", *place]) == 0
    assert capsys.readouterr().err.startswith("no keys")


async def test_the_keys_of_a_backup_are_listed_and_it_stays_as_it_is(
    settings: Settings,
    control: ControlPlane,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    monkeypatch.delenv("MIRAGE_REDIS_URL", raising=False)
    key, _ = await Keyring(control.redis, control.kept).create("ann", frozenset({Scope.READ}))
    backup = tmp_path_factory.mktemp("backup")
    shutil.copytree(settings.data_dir / "segments", backup / "segments")
    before = {path: path.stat().st_mtime_ns for path in backup.rglob("*")}
    assert await asyncio.to_thread(main, ["keys", "list", "--data-dir", str(backup)]) == 0
    assert f"{key.id}  ann" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in backup.rglob("*")} == before


async def test_a_new_key_is_told_in_words_alone(
    settings: Settings, control: ControlPlane, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ["--data-dir", str(settings.data_dir), "--redis-url", settings.redis_url]
    assert await asyncio.to_thread(main, ["keys", *place, "create", "--owner", "ann"]) == 0
    (told,) = capsys.readouterr().err.splitlines()
    assert told.endswith("of ann; it is not shown again")


@pytest.mark.parametrize("days", ["-1", "0", "nan", "inf", "1e9"])
async def test_a_key_that_never_opens_or_never_ends_is_refused(
    settings: Settings, control: ControlPlane, capsys: pytest.CaptureFixture[str], days: str
) -> None:
    place = ["--data-dir", str(settings.data_dir), "--redis-url", settings.redis_url]
    command = ["keys", *place, "create", "--owner", "ann", "--expires-days", days]
    assert await asyncio.to_thread(main, command) == 1
    assert f"--expires-days {float(days):g}: must be more than 0" in capsys.readouterr().err
    assert await Keyring(control.redis, control.kept).list() == []


@pytest.mark.parametrize("words", [["list"], ["revoke", "2561bfe9c19e"]])
def test_a_folder_without_data_is_named_and_not_made(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
) -> None:
    monkeypatch.delenv("MIRAGE_REDIS_URL", raising=False)
    place = tmp_path / "nowhere"
    assert main(["keys", *words, "--data-dir", str(place)]) == 1
    assert f"there is no data folder {place}" in capsys.readouterr().err
    assert not place.exists()


async def test_an_owner_that_can_be_none_is_refused_in_words(
    settings: Settings, control: ControlPlane, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ["--data-dir", str(settings.data_dir), "--redis-url", settings.redis_url]
    command = ["keys", *place, "create", "--owner", "a b"]
    assert await asyncio.to_thread(main, command) != 0
    told = capsys.readouterr().err
    assert "--owner 'a b': must be up to 64 letters" in told and "^" not in told
