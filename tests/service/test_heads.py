"""Heads as they are written to the store, short and long."""

from __future__ import annotations

import random

import pytest
from plane import new_session

from service import heads, keys
from service.control import ControlPlane
from service.frames import ManifestEntry


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
