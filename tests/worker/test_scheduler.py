"""What a step contains: chunks of a path, the newest live pose, and every session in its turn."""

from __future__ import annotations

from typing import Any

import pytest

from service.leases import Owned
from service.requests import Entry, Generate, Init, LivePose, Progress
from service.sessions import IDENTITY, Intrinsics, Session
from worker.scheduler import Job, Scheduler, next_job

INTRINSICS = Intrinsics(fx=1, fy=1, cx=1, cy=1, width=64, height=32)


def owned(
    *messages: Any, name: str = "s", done: int = 0, state: str = "active", **progress: Any
) -> Owned:
    session = Session(
        id=name, state=state, version=1, branch=1, tip="", next_frame=0, intrinsics=INTRINSICS,
        init_request="r0", created_s=0, touched_s=0, expires_s=0,
    )  # fmt: skip
    entries = [Entry(f"{i + 1}-0", f"r{i}", message) for i, message in enumerate(messages)]
    known = {
        entry.id: Progress(id=entry.id, kind="x", total=1, created_s=0, **progress)
        for entry in entries
        if not isinstance(entry.message, LivePose)
    }
    return Owned(session, "0-0", done, entries, known)


def path(count: int) -> Generate:
    return Generate(poses=[[*IDENTITY[:15], float(i)] for i in range(count)])


def job(have: Owned) -> Job:
    found = next_job(have, chunk_frames=4)
    assert found is not None
    return found


def test_an_empty_log_needs_nothing() -> None:
    assert next_job(owned(), 4) is None


@pytest.mark.parametrize(
    ("count", "done", "poses", "cursor", "left"),
    [(10, 0, 4, "0-0", 4), (10, 4, 4, "0-0", 8), (10, 8, 2, "1-0", 0), (4, 0, 4, "1-0", 0)],
)
def test_a_path_is_cut_into_chunks(
    count: int, done: int, poses: int, cursor: str, left: int
) -> None:
    chunk = job(owned(path(count), done=done))
    assert (chunk.what, len(chunk.poses), chunk.first_pose) == ("chunk", poses, done)
    assert chunk.poses[0][15] == done
    assert (chunk.cursor, chunk.cursor_done, chunk.is_last) == (cursor, left, left == 0)


def test_a_live_pose_is_a_frame_of_its_own() -> None:
    live = [LivePose(pose=IDENTITY, sequence=i, camera=i) for i in range(2)]
    found = job(owned(*live, path(1)))
    assert isinstance(found.entry.message, LivePose) and found.entry.message.sequence == 0
    assert (found.cursor, found.progress, len(found.poses)) == ("1-0", None, 1)


def test_an_observation_is_a_job_of_its_own() -> None:
    assert job(owned(Init(blob="b", pose=IDENTITY), path(3))).what == "observe"


def test_what_was_cancelled_is_skipped_whole() -> None:
    found = job(owned(path(10), done=4, cancel_requested=True))
    assert (found.what, found.cursor, found.cursor_done) == ("skip", "1-0", 0)


def test_a_failed_session_does_nothing_more() -> None:
    assert job(owned(path(10), state="failed")).what == "skip"


def names(batch: list[Job]) -> list[str]:
    return [one.session.id for one in batch]


def test_a_step_holds_one_shape() -> None:
    jobs = [
        job(owned(path(4), name="a")),
        job(owned(LivePose(pose=IDENTITY), name="b")),
        job(owned(path(9), name="c")),
        job(owned(Init(blob="b", pose=IDENTITY), name="d")),
    ]
    scheduler = Scheduler(max_batch=8)
    steps = [names(scheduler.pick(jobs)) for _ in range(3)]
    assert steps == [["a", "c"], ["b"], ["d"]]


def test_nobody_starves_behind_a_full_batch() -> None:
    jobs = [job(owned(path(4), name=name)) for name in "abcde"]
    scheduler = Scheduler(max_batch=2)
    served = [name for _ in range(5) for name in names(scheduler.pick(jobs))]
    assert sorted(served) == sorted("abcde" * 2)
    assert served[:5] == list("abcde")


def test_sessions_of_a_broken_batch_are_stepped_alone_once() -> None:
    jobs = [job(owned(path(4), name=name)) for name in "abc"]
    scheduler = Scheduler(max_batch=8)
    scheduler.isolate(["a", "b"])
    steps = [names(scheduler.pick(jobs)) for _ in range(3)]
    assert steps == [["a"], ["b"], ["c", "a", "b"]]


def test_no_jobs_no_step() -> None:
    assert Scheduler(max_batch=8).pick([]) == []
