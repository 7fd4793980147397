"""Heads as they are written to the store, short and long."""

from __future__ import annotations

import json
import random
import threading
from types import ModuleType
from typing import Any

import pytest
from plane import new_session

from service.control import frames, heads, keys
from service.control.frames import ManifestEntry
from service.control.heads import Head
from service.control.plane import ControlPlane
from service.store import exports


def entries(count: int, seed: int = 0) -> list[ManifestEntry]:
    draw = random.Random(seed)
    return [
        ManifestEntry(
            id=f"{at:08d}-w1.1-{draw.getrandbits(256):064x}",
            kind=draw.choice(["live", "generate"]),
            branch=1,
            first_frame=at,
            num_frames=draw.randrange(3),
            num_bytes=draw.randrange(10_000),
            num_points=draw.choice([0, 7]),
            world_bytes=draw.choice([0, 10]),
            home=draw.choice(["", "s1"]),
        )
        for at in range(count)
    ]


@pytest.mark.parametrize("count", [3, frames.LONG + 1])
async def test_a_checkpoint_is_where_the_session_stands(control: ControlPlane, count: int) -> None:
    session = await new_session(control)
    found = [entry.model_dump_json() for entry in entries(count)]
    await control.redis.rpush(keys.manifest(session.id), *found)
    await control.redis.hset(keys.record(session.id), "version", "9")  # type: ignore[misc]
    await control.heads.checkpoint(session.id)
    current = await control.heads.current(session.id)
    assert len(current.manifest) == count
    written = await control.heads.get(session.id, (await control.heads.ids(session.id))[-1])
    assert written.model_copy(update={"written_s": current.written_s}) == current
    assert Head.model_validate_json(current.document()) == current


async def test_nobody_waits_for_a_long_manifest(
    control: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await new_session(control)
    found = entries(3 * frames.LONG + 1)
    lines = [entry.model_dump_json() for entry in found]
    await control.redis.rpush(keys.manifest(session.id), *lines)
    worked: list[tuple[str, threading.Thread]] = []
    for module, name in ((frames, "parse_manifest"), (heads, "pack"), (exports, "portable")):
        _watch(monkeypatch, module, name, worked)
    assert await control.frames.manifest(session.id) == found
    await control.heads.checkpoint(session.id)
    document = json.loads((await control.exports.open(session.id)).document)
    assert [one["id"] for one in document["manifest"]] == [entry.id for entry in found]
    assert {name for name, _ in worked} == {"parse_manifest", "pack", "portable"}
    assert threading.current_thread() not in {thread for _, thread in worked}


def _watch(
    monkeypatch: pytest.MonkeyPatch,
    module: ModuleType,
    name: str,
    worked: list[tuple[str, threading.Thread]],
) -> None:
    """Note on which threads a function works."""
    work = getattr(module, name)

    def noted(*args: Any) -> Any:
        worked.append((name, threading.current_thread()))
        return work(*args)

    monkeypatch.setattr(module, name, noted)


def test_other_threads_get_their_turn_while_a_long_manifest_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes = []

    class Watched:
        def validate_json(self, data: bytes) -> list[ManifestEntry]:
            found = manifest.validate_json(data)
            sizes.append(len(found))
            return found

    manifest = frames.MANIFEST
    monkeypatch.setattr(frames, "MANIFEST", Watched())
    found = entries(2 * frames.LONG + 1)
    assert frames.parse_manifest([one.model_dump_json().encode() for one in found]) == found
    assert sizes == [frames.LONG, frames.LONG, 1]
