"""A checkpoint takes the manifest as Redis holds it, and is what it would be if that was parsed."""

from __future__ import annotations

import random

import pytest
from plane import new_session

from service import heads, keys
from service.control import ControlPlane
from service.frames import ManifestEntry
from service.heads import Head, Name, pack, pack_found, unpack
from service.sessions import Intrinsics, NewSession

LENS = Intrinsics(fx=50, fy=50, cx=32, cy=16, width=64, height=32)


def entries(count: int, seed: int = 0) -> list[ManifestEntry]:
    """With and without what is left out as the default, and with words that look like it."""
    draw = random.Random(seed)
    return [
        ManifestEntry(
            id=f"{at:08d}-w1.1-{draw.getrandbits(256):064x}",
            kind=draw.choice(["live", "generate", '","home":""}', ',"num_points":0,']),
            branch=1,
            first_frame=at,
            num_frames=draw.randrange(3),
            num_bytes=draw.randrange(10_000),
            num_points=draw.choice([0, 7, 0]),
            world_bytes=draw.choice([0, 10]),
            home=draw.choice(["", "s1"]),
        )
        for at in range(count)
    ]


def head_of(manifest: list[ManifestEntry]) -> Head:
    name = Name(
        name='"manifest":[', tip="", branch=1, num_segments=1, num_frames=1, head="h", created_s=1
    )
    return Head(
        session="s", version=3, spec=NewSession(intrinsics=LENS), manifest=manifest,
        names={"n": name}, init_request="r", created_s=1.5,
    )  # fmt: skip


@pytest.mark.parametrize("count", [0, 1, 2, 300])
def test_a_manifest_that_is_joined_is_one_that_is_parsed(count: int) -> None:
    for seed in range(20):
        manifest = entries(count, seed)
        found = [entry.model_dump_json().encode() for entry in manifest]
        whole = head_of(manifest)
        begun = whole.model_copy(update={"manifest": manifest[:1]})
        assert pack_found(begun, found) == pack(whole)


def test_a_manifest_that_another_hand_wrote_is_read_and_written() -> None:
    manifest = entries(3)
    found = [entry.model_dump_json(indent=1).encode() for entry in manifest]
    begun = head_of(manifest[:1])
    assert unpack(pack_found(begun, found)).manifest == manifest


@pytest.mark.parametrize("count", [3, heads.LONG + 1])
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
