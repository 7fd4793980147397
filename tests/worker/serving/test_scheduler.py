"""What a step contains: chunks of a path, the newest live pose, and every session in its turn."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from service.control.leases import Owned
from service.control.requests import Entry, Generate, Init, LivePose, Observe, Progress
from service.control.sessions import IDENTITY, Intrinsics, Session
from worker.serving.scheduler import Job, Scheduler, advanced, after, next_job

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


def test_observations_that_wait_are_taken_up_together() -> None:
    looks = [Observe(blob=str(i), pose=IDENTITY) for i in range(6)]
    have = owned(*looks, path(3))
    first = job(have)
    followers = [first, *first.more]
    assert [one.entry.id for one in followers] == ["r0", "r1", "r2", "r3"]
    assert [one.session.num_segments for one in followers] == [0, 1, 2, 3]
    assert [one.cursor for one in followers] == ["1-0", "2-0", "3-0", "4-0"]
    assert first.upto(4) is first and [one.entry.id for one in first.upto(2).more] == ["r1"]
    second = job(after(have, first))
    assert [one.entry.id for one in (second, *second.more)] == ["r4", "r5"]
    assert job(after(after(have, first), second)).what == "chunk"
    cancelled = have.progress["r2"].model_copy(update={"cancel_requested": True})
    stopped = have._replace(progress=have.progress | {"r2": cancelled})
    assert [one.entry.id for one in job(stopped).more] == ["r1"]


def test_what_was_cancelled_is_skipped_whole() -> None:
    found = job(owned(path(10), done=4, cancel_requested=True))
    assert (found.what, found.cursor, found.cursor_done) == ("skip", "1-0", 0)


def test_a_failed_session_does_nothing_more() -> None:
    assert job(owned(path(10), state="failed")).what == "skip"


def names(batch: list[Job]) -> list[str]:
    return [one.session.id for one in batch]


def step(scheduler: Scheduler, jobs: list[Job], now_s: float = 0.0) -> list[str]:
    return names(scheduler.pick(scheduler.order(jobs, now_s)))


def test_a_step_holds_one_shape_and_begins_with_the_most_urgent() -> None:
    jobs = [
        job(owned(path(4), name="a")),
        job(owned(LivePose(pose=IDENTITY), name="b")),
        job(owned(path(9), name="c")),
        job(owned(Init(blob="b", pose=IDENTITY), name="d")),
    ]
    scheduler = Scheduler(max_batch=8)
    steps = []
    while jobs:
        steps.append(step(scheduler, jobs))
        jobs = [one for one in jobs if one.session.id not in steps[-1]]
    assert steps == [["b"], ["d"], ["a", "c"]]


def test_nobody_starves_behind_a_full_batch() -> None:
    jobs = [job(owned(path(4), name=name)) for name in "abcde"]
    scheduler = Scheduler(max_batch=2)
    served: list[str] = []
    for i in range(50):
        batch = step(scheduler, jobs, now_s=i)
        served += batch
        jobs.sort(key=lambda one: one.session.id in batch)  # as holdings do: the last come last
    assert sorted(served[:5]) == list("abcde")
    counts = [served.count(name) for name in "abcde"]
    assert max(counts) - min(counts) <= 1


def test_live_cameras_go_first_but_a_path_does_not_starve_behind_them() -> None:
    """Two live sessions always have a pose waiting; a step takes 20 ms."""
    live = [job(owned(LivePose(pose=IDENTITY), name=name)) for name in ("l1", "l2")]
    walk = job(owned(path(4), name="p"))
    scheduler = Scheduler(max_batch=1)
    served = [step(scheduler, [*live, walk], now_s=0.02 * i)[0] for i in range(100)]
    waits = [i for i, name in enumerate(served) if name == "p"]
    assert served[:3] == ["l1", "l2", "l1"]
    assert 3 <= len(waits) <= 10 and max(b - a for a, b in itertools.pairwise(waits)) < 30


def test_a_newer_pose_does_not_move_the_deadline() -> None:
    scheduler = Scheduler(max_batch=1)
    old, new = (owned(LivePose(pose=IDENTITY, sequence=i), name="l") for i in (0, 1))
    scheduler.order([job(old)], now_s=0.0)
    found = scheduler.order([job(new)], now_s=1.0)
    assert scheduler.deadline_s(found[0]) < 1.0


def test_sessions_of_a_broken_batch_are_stepped_alone_once() -> None:
    jobs = [job(owned(path(4), name=name)) for name in "abc"]
    scheduler = Scheduler(max_batch=8)
    scheduler.isolate(["a", "b"])
    steps = [step(scheduler, jobs, now_s=float(i)) for i in range(3)]
    assert steps == [["a"], ["b"], ["c", "a", "b"]]


def test_no_jobs_no_step() -> None:
    assert Scheduler(max_batch=8).pick([]) == []


@pytest.mark.parametrize("lengths", [(10,), (3, 5), (1, 1, 6)])
def test_a_log_can_be_followed_without_reading_it_again(lengths: tuple[int, ...]) -> None:
    """Every job in turn, from what each leaves behind, covers all poses with consecutive frames."""
    have = owned(Init(blob="b", pose=IDENTITY), *(path(length) for length in lengths))
    frames, poses, segments = [], [], 0
    while (todo := next_job(have, chunk_frames=4)) is not None:
        assert todo.session.num_segments == segments
        first = todo.session.next_frame
        frames += range(first, first + todo.num_frames)
        poses += [(todo.entry.id, todo.first_pose + i) for i in range(len(todo.poses))]
        have, segments = after(have, todo), segments + 1
        progress = advanced(todo)
        assert progress is not None and progress.last_frame == frames[-1]
        assert (progress.state == "done") == todo.is_last
    assert frames == list(range(1 + sum(lengths)))
    wanted = [(f"r{i + 1}", k) for i, length in enumerate(lengths) for k in range(length)]
    assert poses == [("r0", 0), *wanted]
