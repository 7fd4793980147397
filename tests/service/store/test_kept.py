"""Records that lie in Redis and in the store: shown again after a loss, gone when revoked."""

from __future__ import annotations

import time
from collections.abc import Iterable

import pytest

from service.control import keys
from service.control.plane import ControlPlane
from service.errors import StoreDown
from service.settings import Settings
from service.store.kept import Kept, Record
from service.store.objects import ObjectStore

INDEX = keys.shares("s1")


def record(name: str, expires_s: float | None = None) -> Record:
    return Record(
        name=f"ms-{name}", key=keys.grant(name), value=f"of {name}", index=INDEX,
        member=name, score=1.5, expires_s=expires_s,
    )  # fmt: skip


async def shown(control: ControlPlane) -> dict[str, str]:
    """What Redis holds, by member."""
    names = [name.decode() for name in await control.redis.zrange(INDEX, 0, -1)]
    values = [await control.redis.get(keys.grant(name)) for name in names]
    return {name: value.decode() for name, value in zip(names, values, strict=True) if value}


async def stored(control: ControlPlane) -> list[str]:
    return sorted(one.path for one in await control.segments.objects.below("kept"))


async def test_what_redis_lost_is_shown_again_but_for_what_expired(control: ControlPlane) -> None:
    now_s = time.time()
    for name, expires_s in (("a", None), ("b", now_s + 3600), ("c", now_s - 1)):
        await control.kept.put(record(name, expires_s))
    assert await shown(control) == {"a": "of a", "b": "of b"}
    await control.redis.flushall()
    assert await control.kept.restore() == 3
    assert await shown(control) == {"a": "of a", "b": "of b"}
    assert 3500 < await control.redis.ttl(keys.grant("b")) <= 3600
    await control.kept.expire(now_s, 10)
    assert await stored(control) == ["kept/ms-a.json", "kept/ms-b.json"]
    await control.kept.expire(now_s + 3601, 10)
    assert await stored(control) == ["kept/ms-a.json"]


async def test_what_is_revoked_stays_so(control: ControlPlane) -> None:
    await control.kept.put(record("a"))
    forget = ("ms-a", keys.grant("a"), INDEX, "a")
    assert await control.kept.forget(*forget)
    assert not await control.kept.forget(*forget)
    await control.kept.restore()
    assert await shown(control) == {} and await stored(control) == []


class Stubborn(ObjectStore):
    """Removes nothing until it is told to."""

    is_down = True

    async def delete(self, paths: Iterable[str]) -> None:
        if self.is_down:
            raise StoreDown("read-only file system")
        await super().delete(paths)


async def test_a_store_that_keeps_what_is_revoked_is_said(
    control: ControlPlane, settings: Settings
) -> None:
    store = Stubborn(settings.segments_url)
    kept, forget = Kept(control.redis, store), ("ms-a", keys.grant("a"), INDEX, "a")
    await kept.put(record("a"))
    with pytest.raises(StoreDown, match=r"a is revoked, but .* read-only"):
        await kept.forget(*forget)
    assert await shown(control) == {}
    store.is_down = False
    assert await kept.forget(*forget)  # again, as it says
    assert await stored(control) == []


async def test_what_cannot_be_read_costs_nothing_else(control: ControlPlane) -> None:
    await control.kept.put(record("a"))
    await control.segments.objects.put("kept/broken.json", b"{")
    await control.redis.flushall()
    await control.kept.restore()
    assert await shown(control) == {"a": "of a"}
