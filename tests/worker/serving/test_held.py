"""What a worker hears of its sessions is what it would read, or else it reads."""

from __future__ import annotations

import asyncio
import random
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "service"))
from plane import leases_of, new_session, step

from service.control import keys
from service.control.leases import LOG_AHEAD, Leases, Owned
from service.control.news import Inbox, News
from service.control.plane import ControlPlane
from service.control.requests import Entry, Generate, LivePose, Rewind
from service.control.sessions import IDENTITY
from service.settings import Settings
from worker.serving.faults import NoFaults
from worker.serving.held import Held
from worker.serving.holdings import Holdings
from worker.serving.metrics import Metrics

LONG_S = 30.0
POSE = LivePose(pose=IDENTITY)


def same(heard: Owned, read: Owned) -> bool:
    """But for when the session was touched, which nobody tells."""
    times = {"touched_s": 0.0, "expires_s": 0.0}
    both = [one.session.model_copy(update=times) for one in (heard, read)]
    return both[0] == both[1] and heard._replace(session=read.session) == read


async def opened(control: ControlPlane) -> tuple[Held, Leases]:
    """A session whose first image is done, as its owner has read it."""
    session, leases = await new_session(control), leases_of(control)
    lease = await leases.acquire(session.id)
    assert lease
    held = Held(session.id, lease, [])
    await leases.commit(session.id, lease, step(await leases.load(session.id), 0, 1))
    await read(held, leases)
    return held, leases


async def read(held: Held, leases: Leases) -> None:
    held.is_stale = False
    held.read(await leases.load(held.session), [])


@pytest.mark.parametrize("seed", range(3))
async def test_what_is_heard_is_what_would_be_read(control: ControlPlane, seed: int) -> None:
    held, leases = await opened(control)
    inbox, draw, num_heard = Inbox(control.redis, "w1"), random.Random(seed), 0
    await inbox.open()
    await asyncio.wait_for(inbox.listen(), LONG_S)
    for sequence in range(40):
        if draw.random() < 0.1:
            path = Generate(poses=[IDENTITY])
            await control.requests.append(held.session, path, request_id=f"r{sequence}")
        else:
            live = LivePose(pose=IDENTITY, camera=draw.randrange(3), sequence=sequence)
            await control.requests.append_live(held.session, live)
        (news,) = await asyncio.wait_for(inbox.listen(), LONG_S)
        assert news is not None
        held.hear(news)
        num_heard += not held.is_stale
        if held.is_stale:
            await read(held, leases)
        assert held.owned is not None
        assert same(held.owned, await leases.load(held.session))
        if len(held.owned.entries) > 4:  # all of it is done
            await control.redis.delete(keys.log(held.session))
            await read(held, leases)
    assert num_heard > 20
    await inbox.close()


def entry(number: int) -> Entry:
    return Entry(f"{number}-0", f"r{number}", POSE)


async def test_a_gap_is_read(control: ControlPlane) -> None:
    held, _ = await opened(control)
    held.hear(News(held.session, 2, entry(2)))
    assert held.is_stale


async def test_old_news_is_no_news(control: ControlPlane) -> None:
    held, _ = await opened(control)
    held.hear(News(held.session, 1, entry(1)))
    before = held.owned
    held.hear(News(held.session, 1, entry(1)))
    assert held.owned is before
    assert not held.is_stale


async def test_what_was_heard_during_a_reading_is_read_again(control: ControlPlane) -> None:
    held, leases = await opened(control)
    held.is_stale = False
    found = await leases.load(held.session)
    await control.requests.append_live(held.session, POSE)
    held.hear(News(held.session, 1, entry(1)))
    held.read(found, [])
    assert held.is_stale
    await read(held, leases)
    assert not held.is_stale


async def test_behind_a_log_that_was_not_read_to_its_end_nothing_is_added(
    control: ControlPlane,
) -> None:
    held, leases = await opened(control)
    for _ in range(LOG_AHEAD):
        await control.requests.append(held.session, Generate(poses=[IDENTITY]))
    await read(held, leases)
    assert held.owned is not None
    assert not held.owned.is_whole
    held.hear(News(held.session, LOG_AHEAD + 1, entry(1)))
    assert held.is_stale


@pytest.mark.parametrize("is_known", [True, False])
async def test_what_was_read_before_a_commit_does_not_bring_back_its_tip(
    control: ControlPlane, settings: Settings, is_known: bool
) -> None:
    """The next job would be refused, and the session rest until its lease has ended."""
    held, leases = await opened(control)
    metrics = Metrics()
    holdings = Holdings(control, settings, "w2", NoFaults(), metrics, on_lost=lambda _: None)
    holdings._held[held.session] = held
    for _ in range(2):
        await control.requests.append(held.session, Generate(poses=[IDENTITY]))
    await read(held, leases)
    (job,) = await holdings.jobs()
    change = step(await leases.load(held.session), 1, 1, "new")
    held.begin(job)
    found, ahead = await leases.load(held.session), list(held.ahead)
    if not is_known:  # what the commit leaves, as where more has happened to the record
        held.known = None
    assert await holdings.commit(held, change)
    held.end(job, "new")
    held.read(found, ahead)
    (following,) = await holdings.jobs()
    assert following.session.tip == "new" and following.session.num_segments == 2
    assert held.known is not None and held.known.tip == "new"


async def test_a_job_that_fails_during_a_reading_is_not_counted_as_done(
    control: ControlPlane, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last chunk of a path is void: what stands behind the path in the log is not its next."""
    session, leases = await new_session(control), leases_of(control, lease_s=LONG_S)
    lease = await leases.acquire(session.id)
    assert lease
    await leases.commit(session.id, lease, step(await leases.load(session.id), 0, 1))
    await leases.release(session.id, lease)
    for message in (Generate(poses=[IDENTITY]), Rewind(frame=0)):
        await control.requests.append(session.id, message)
    settings = settings.model_copy(update={"lease_s": LONG_S})
    metrics = Metrics()
    holdings = Holdings(control, settings, "w2", NoFaults(), metrics, on_lost=lambda _: None)
    await holdings.open()
    while not len(holdings):
        await asyncio.wait_for(holdings.pull(), LONG_S)
    (chunk,) = await holdings.jobs()
    held = holdings[session.id]
    held.begin(chunk)
    load_all, begun, ended = Leases.load_all, asyncio.Event(), asyncio.Event()

    async def slow(*args: Any) -> Any:
        found = await load_all(*args)
        begun.set()
        await ended.wait()
        return found

    monkeypatch.setattr(Leases, "load_all", slow)
    holdings.invalidate(session.id)
    reading = asyncio.create_task(holdings.jobs())
    await asyncio.wait_for(begun.wait(), LONG_S)
    held.end(chunk, None)
    ended.set()
    assert await reading == []
    (again,) = await holdings.jobs()
    assert (again.what, again.entry) == ("chunk", chunk.entry)
    await holdings.hand_over()
    await holdings.close()
