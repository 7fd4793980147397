"""`mirage keys`: where it looks, what it prints."""

from __future__ import annotations

import asyncio

import pytest

from service.auth.keyring import Keyring, parse_credential
from service.cli import main
from service.control import ControlPlane
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
    await keys("revoke", key.id)
    assert await keys("list") == ""


async def test_an_owner_that_can_be_none_is_refused_in_words(
    settings: Settings, control: ControlPlane, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ["--data-dir", str(settings.data_dir), "--redis-url", settings.redis_url]
    command = ["keys", *place, "create", "--owner", "a b"]
    assert await asyncio.to_thread(main, command) != 0
    told = capsys.readouterr().err
    assert "--owner 'a b': must be up to 64 letters" in told and "^" not in told
