"""The frame bus: in order, resumable by number, older frames from segments."""

from __future__ import annotations

import asyncio
import json
import struct
import time
from collections import Counter

import pytest
from plane import frame, leases_of, new_session, step

from service.control import keys
from service.control.callers import Caller, is_full
from service.control.frames import Frame, ManifestEntry, parse_push
from service.control.plane import ControlPlane
from service.control.requests import Generate
from service.control.sessions import IDENTITY, Session
from service.errors import FramesGone, SessionDeleted, Unavailable, UnknownFrame
from service.store.segments import FrameMeta, SegmentHeader, segment_id, segment_path
from service.tasks import end


def tiny_segment(session: Session, first: int, count: int) -> bytes:
    """The bytes of a segment that holds frames and nothing else."""
    frames = [frame(number) for number in range(first, first + count)]
    header = SegmentHeader(
        session=session.id, index=first, parent="", kind="generate", weights="w", branch=1,
        frame_indices=[one.frame for one in frames],
        frames=[FrameMeta(**one.model_dump(exclude={"image"})) for one in frames],
        intrinsics=session.intrinsics.model_dump(), created_s=time.time(),
    )  # fmt: skip
    sizes = b"".join(struct.pack("<q", len(one.image)) for one in frames)
    body = sizes + b"".join(one.image for one in frames)
    table = {
        "__metadata__": {"header": header.model_dump_json()},
        "frame_sizes": {"dtype": "I64", "shape": [count], "data_offsets": [0, len(sizes)]},
        "frames": {"dtype": "U8", "shape": [], "data_offsets": [len(sizes), len(body)]},
    }
    text = json.dumps(table).encode()
    return struct.pack("<Q", len(text)) + text + body


async def publish(control: ControlPlane, session: Session, chunks: int, size: int = 4) -> list[str]:
    """Commit `chunks` chunks as an owner would; 8 frames are kept in the stream."""
    leases, names = leases_of(control), []
    lease = await leases.acquire(session.id)
    assert lease
    for chunk in range(chunks):
        if chunk:
            await control.requests.append(session.id, Generate(poses=[IDENTITY]))
        data = tiny_segment(session, chunk * size, size)
        name = segment_id(chunk, lease, data)
        await control.segments.put(session.id, name, data)
        owned = await leases.load(session.id)
        await leases.commit(session.id, lease, step(owned, chunk * size, size, name))
        names.append(name)
    return names


async def test_frames_come_in_order_after_any_number(control: ControlPlane) -> None:
    session = await new_session(control)
    await publish(control, session, 2)
    frames = await control.frames.read(session.id)
    assert [one.frame for one in frames] == list(range(8))
    assert frames[3].image == b"image 3" and frames[3].meta()["frame"] == 3
    assert "image" not in frames[3].meta()
    assert [one.frame for one in await control.frames.read(session.id, 4, limit=2)] == [5, 6]
    assert await control.frames.read(session.id, 7) == []


async def test_frames_that_left_the_stream_come_from_segments(control: ControlPlane) -> None:
    session = await new_session(control)
    await publish(control, session, 5)
    assert await control.redis.xlen(keys.frames(session.id)) == 8
    found, after = [], -1
    while more := await control.frames.read(session.id, after, limit=3):
        found += more
        after = more[-1].frame
    assert [one.frame for one in found] == list(range(20))
    assert [one.image for one in found] == [b"image %d" % i for i in range(20)]
    assert (await control.frames.get(session.id, 2)).image == b"image 2"


async def test_frames_survive_the_loss_of_the_stream(control: ControlPlane) -> None:
    session = await new_session(control)
    await publish(control, session, 2)
    await control.redis.delete(keys.frames(session.id))
    assert (await control.frames.get(session.id, 7)).image == b"image 7"


async def test_what_no_longer_exists_names_the_first_that_does(control: ControlPlane) -> None:
    session = await new_session(control)
    names = await publish(control, session, 5)
    await control.segments.objects.delete([segment_path(session.id, names[0])])
    with pytest.raises(FramesGone) as caught:
        await control.frames.get(session.id, 1)
    assert caught.value.first_available == 4


async def test_a_frames_segment_is_found_without_the_others(control: ControlPlane) -> None:
    session = await new_session(control)
    sizes, first = [4, 0, 1, 0, 0, 3, 1, 1, 0], 0
    entries = []
    for at, size in enumerate(sizes):
        one = ManifestEntry(
            id=f"segment-{at}", kind="generate", branch=1, first_frame=first, num_frames=size,
            num_bytes=1,
        )  # fmt: skip
        entries.append(one)
        first += size
        await control.redis.rpush(keys.manifest(session.id), one.model_dump_json())
    assert await control.frames.manifest(session.id) == entries
    await control.redis.config_resetstat()
    for number in range(-1, first + 2):
        expected = next((one for one in entries if one.holds(number)), None)
        assert await control.frames.segment_of(session.id, number) == expected
    assert await control.frames.segment_of("nobody", 0) is None
    assert "cmdstat_lrange" not in await control.redis.info("commandstats")


async def test_the_first_segment_of_a_newer_branch_is_found_without_the_others(
    control: ControlPlane,
) -> None:
    session = await new_session(control)
    entries = [
        ManifestEntry(
            id=f"segment-{at}", kind="live", branch=branch, first_frame=at, num_frames=1,
            num_bytes=1,
        )
        for at, branch in enumerate([1, 1, 2, 2, 2, 5, 7, 7])
    ]  # fmt: skip
    lines = [one.model_dump_json() for one in entries]
    await control.redis.rpush(keys.manifest(session.id), *lines)
    await control.redis.config_resetstat()
    for branch in range(9):
        expected = next((one for one in entries if one.branch > branch), None)
        assert await control.frames.newer_than(session.id, branch) == expected
    assert await control.frames.newer_than("nobody", 0) is None
    assert "cmdstat_lrange" not in await control.redis.info("commandstats")


@pytest.mark.parametrize("number", [-1, 4, 99])
async def test_a_frame_that_was_not_made_is_unknown(control: ControlPlane, number: int) -> None:
    session = await new_session(control)
    await publish(control, session, 1)
    with pytest.raises(UnknownFrame, match=str(number)):
        await control.frames.get(session.id, number)


async def test_a_reader_waits_for_the_next_frame(control: ControlPlane) -> None:
    session = await new_session(control)
    started = time.perf_counter()
    assert await control.frames.read(session.id, wait_s=0.1) == []
    assert 0.09 < time.perf_counter() - started < 20
    reading = asyncio.create_task(control.frames.read(session.id, wait_s=20))
    await asyncio.sleep(0.05)
    await publish(control, session, 1)
    assert [one.frame for one in await reading] == [0, 1, 2, 3]


async def test_a_reader_learns_that_the_session_was_deleted(control: ControlPlane) -> None:
    session = await new_session(control)
    reading = asyncio.create_task(control.frames.read(session.id, wait_s=2))
    await asyncio.sleep(0.05)
    await control.sessions.delete(session.id)
    with pytest.raises(SessionDeleted):
        await reading


def test_an_entry_knows_its_frames() -> None:
    entry = ManifestEntry(id="x", kind="live", branch=2, first_frame=4, num_frames=4, num_bytes=1)
    held = [n for n in range(12) if entry.holds(n)]
    assert held == [4, 5, 6, 7] and entry.next_frame == 8


async def test_so_many_wait_and_no_more(control: ControlPlane) -> None:
    session, most = await new_session(control), keys.MAX_LONG_POLLS
    wait = control.frames.read
    waiting = {asyncio.create_task(wait(session.id, wait_s=20.0)) for _ in range(most + 1)}
    (refused,), others = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    with pytest.raises(Unavailable, match=f"{most} requests wait for frames here") as error:
        await refused
    assert error.value.retry_after_s
    assert await control.frames.read(session.id) == []  # who does not wait is answered
    await end(list(others))
    assert await wait(session.id, wait_s=0.01) == []


async def test_one_owner_leaves_others_room_to_wait(control: ControlPlane) -> None:
    session, most = await new_session(control), keys.OWNERS_LONG_POLLS
    wait = control.frames.read
    anns = {
        asyncio.create_task(wait(session.id, wait_s=20.0, caller=Caller("ann")))
        for _ in range(most + 1)
    }
    (refused,), others = await asyncio.wait(anns, return_when=asyncio.FIRST_COMPLETED)
    with pytest.raises(Unavailable, match=f"{most} of them of this owner's keys"):
        await refused
    assert await wait(session.id, wait_s=0.01, caller=Caller("bob")) == []
    await end(list(others))
    assert await wait(session.id, wait_s=0.01, caller=Caller("ann")) == []


async def test_guests_leave_the_owner_and_each_other_room_to_wait(control: ControlPlane) -> None:
    session, most = await new_session(control), keys.OWNERS_LONG_POLLS // 2
    wait = control.frames.read
    guests = {
        asyncio.create_task(wait(session.id, wait_s=20.0, caller=Caller("ann", "link")))
        for _ in range(most + 1)
    }
    (refused,), others = await asyncio.wait(guests, return_when=asyncio.FIRST_COMPLETED)
    with pytest.raises(Unavailable, match=f"{most} of them with this share link"):
        await refused
    for caller in (Caller("ann"), Caller("ann", "other"), Caller("bob")):
        assert await wait(session.id, wait_s=0.01, caller=caller) == []
    await end(list(others))


def test_all_links_of_an_owner_together_have_as_much_as_the_owner() -> None:
    held = Counter({Caller("ann", f"link {number}"): 2 for number in range(3)})
    held[Caller("bob", "his")] = 4
    assert is_full(held, Caller("ann", "another"), 6)
    assert not is_full(held, Caller("ann", "another"), 7)
    assert not is_full(held, Caller("ann"), 1)
    assert not is_full(Counter({Caller(): 9}), Caller(), 1)  # there are no keys


def test_a_push_is_read_as_the_meta_and_the_image_that_it_is() -> None:
    one = frame(3).model_copy(update={"image": b"\n{two}\nlines"})
    meta = FrameMeta(**one.model_dump(exclude={"image"})).model_dump_json().encode()
    whole = FrameMeta.model_validate_json(meta)
    assert parse_push(meta + b"\n" + one.image) == Frame(**whole.__dict__, image=one.image) == one
