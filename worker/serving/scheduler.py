"""What the next step contains: a job per session that has work, and a fair choice of a batch.

Torch-free. A path is cut into chunks, a live pose is a frame of its own, so is an observation. Jobs
of one step render the same number of poses; observations that wait in one session are taken up
together. Every job has a deadline that is fixed once its session waits for a step: the earliest
goes first and takes along all of its shape. Live poses are due sooner than paths, but a path's
deadline does not move, so that nobody starves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from service.control.leases import Owned
from service.control.requests import (
    Entry,
    Generate,
    Init,
    LivePose,
    Observe,
    Progress,
    RequestState,
)
from service.control.sessions import Session

Work = Literal["observe", "chunk", "skip", "head"]
PATIENCE_S = {"skip": 0.0, "head": 0.0, "live": 0.03, "observe": 0.1, "path": 0.5}


class Job(NamedTuple):
    """One session's part of a step, and the cursor that a commit of it leaves behind."""

    session: Session  # as it will be when everything before this job is committed, but for the tip
    what: Work
    entry: Entry
    progress: Progress | None
    poses: list[list[float]]
    first_pose: int  # index of poses[0] in its request
    cursor: str
    cursor_done: int
    is_last: bool  # nothing of the request is left afterwards
    more: tuple[Job, ...] = ()  # observations that follow this one in the same step

    @property
    def is_live(self) -> bool:
        return isinstance(self.entry.message, LivePose)

    @property
    def num_frames(self) -> int:
        """Frames that clients get: of observations only the first image is shown."""
        if self.what == "observe":
            return int(self.session.next_frame == 0)
        return len(self.poses) if self.what == "chunk" else 0

    def at(self, tip: str) -> Job:
        """The same job, to be committed onto this tip."""
        if tip == self.session.tip:
            return self
        return self._replace(session=self.session.model_copy(update={"tip": tip}))

    def upto(self, count: int) -> Job:
        """The first `count` observations of this job."""
        return self if len(self.more) < count else self._replace(more=self.more[: count - 1])


def next_job(owned: Owned, chunk_frames: int) -> Job | None:
    """What this session needs next, or None if its log is done."""
    if not owned.entries:
        return None
    session, entry = owned.session, owned.entries[0]
    progress = owned.progress.get(entry.id)
    begun = session.moved_by == entry.id  # a rewind that moved the head is finished
    cancelled = progress is not None and progress.cancel_requested and not begun
    if session.state == "failed" or cancelled:
        return _whole(session, "skip", entry, progress, [])
    message = entry.message
    if isinstance(message, Init):
        return _whole(session, "observe", entry, progress, [message.pose])
    if isinstance(message, Observe):
        return _observations(owned, message, chunk_frames)
    if isinstance(message, LivePose):
        return _whole(session, "chunk", entry, None, [message.pose])
    if isinstance(message, Generate):
        return _chunk(owned, message, chunk_frames)
    return _whole(session, "head", entry, progress, [])


def _whole(
    session: Session, what: Work, entry: Entry, progress: Progress | None, poses: list[list[float]]
) -> Job:
    return Job(session, what, entry, progress, poses, 0, entry.entry, 0, True)


def _observations(owned: Owned, message: Observe, most: int) -> Job:
    """This one and those right behind it."""
    entry = owned.entries[0]
    first = _whole(owned.session, "observe", entry, owned.progress.get(entry.id), [message.pose])
    left = after(owned, first)
    if most > 1 and left.entries and isinstance(left.entries[0].message, Observe):
        second = next_job(left, most - 1)
        if second is not None and second.what == "observe":  # it was not cancelled
            alone = second._replace(more=())
            return first._replace(more=(alone, *second.more))
    return first


def _chunk(owned: Owned, message: Generate, chunk_frames: int) -> Job:
    entry, done = owned.entries[0], owned.cursor_done
    poses = message.poses[done : done + chunk_frames]
    is_last = done + len(poses) == len(message.poses)
    cursor = entry.entry if is_last else owned.cursor
    left = 0 if is_last else done + len(poses)
    progress = owned.progress.get(entry.id)
    return Job(owned.session, "chunk", entry, progress, poses, done, cursor, left, is_last)


def advanced(job: Job) -> Progress | None:
    """The progress of a job's request once the job is committed."""
    if job.progress is None:
        return None
    update: dict[str, object] = {
        "state": RequestState.DONE if job.is_last else RequestState.RUNNING,
        "done": job.progress.done + job.num_frames,
    }
    if job.num_frames:
        update["last_frame"] = job.session.next_frame + job.num_frames - 1
        if job.progress.first_frame is None:
            update["first_frame"] = job.session.next_frame
    return job.progress.model_copy(update=update)


def after(owned: Owned, job: Job) -> Owned:
    """The session as it will be when this job is committed, so that the next can begin before."""
    for one in (job, *job.more):
        owned = _after(owned, one)
    return owned


def _after(owned: Owned, job: Job) -> Owned:
    session = owned.session.model_copy(
        update={
            "next_frame": job.session.next_frame + job.num_frames,
            "num_segments": job.session.num_segments + int(job.what in ("observe", "chunk")),
        }
    )
    done = _position(job.cursor)
    progress = advanced(job)
    known = owned.progress if progress is None else owned.progress | {job.entry.id: progress}
    left = [entry for entry in owned.entries if _position(entry.entry) > done]
    return owned._replace(
        session=session,
        cursor=job.cursor,
        cursor_done=job.cursor_done,
        entries=left,
        progress=known,
    )


def _position(entry: str) -> tuple[int, int]:
    """A stream id as something that compares."""
    milliseconds, _, count = entry.partition("-")
    return int(milliseconds), int(count or 0)


class Scheduler:
    """Earliest deadline first, batched by shape."""

    def __init__(self, max_batch: int) -> None:
        self._max_batch = max_batch
        self._since_s: dict[str, float] = {}  # session -> when it began to wait for a step
        self._alone: set[str] = set()

    def order(self, jobs: Iterable[Job], now_s: float) -> list[Job]:
        """These jobs, the most urgent first; sessions that are not among them wait no more."""
        waiting = {job.session.id: job for job in jobs}
        self._since_s = {name: self._since_s.get(name, now_s) for name in waiting}
        return sorted(waiting.values(), key=self.deadline_s)

    def deadline_s(self, job: Job) -> float:
        """When a job that is waiting should be taken up."""
        kind = job.what if job.what != "chunk" else "live" if job.is_live else "path"
        return self._since_s[job.session.id] + PATIENCE_S[kind]

    def pick(self, ordered: Sequence[Job]) -> list[Job]:
        """The next step, from jobs in order: the first and those of its shape."""
        if not ordered:
            return []
        head = ordered[0]
        batch = [job for job in ordered if _shape(job) == _shape(head)]
        if head.session.id in self._alone:
            batch = [head.upto(1)]
        else:
            batch = [job for job in batch if job.session.id not in self._alone][: self._max_batch]
        for job in batch:
            self._since_s.pop(job.session.id, None)
            self._alone.discard(job.session.id)
        return batch

    def isolate(self, sessions: Iterable[str]) -> None:
        """Step each of these alone once: one of them broke the batch they were in."""
        self._alone |= set(sessions)

    def forget(self, session: str) -> None:
        self._since_s.pop(session, None)
        self._alone.discard(session)


def _shape(job: Job) -> tuple[str, int]:
    return job.what, len(job.poses)
