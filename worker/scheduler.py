"""What the next step contains: a job per session that has work, and a fair choice of a batch.

Torch-free. A path is cut into chunks, of live poses only the newest counts, an observation is a job
of its own. Jobs of one step render the same number of poses. The session that was served longest
ago always goes first, so none starves.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from service.leases import Owned
from service.requests import Entry, Generate, Init, LivePose, Observe, Progress
from service.sessions import Session

Work = Literal["observe", "chunk", "skip", "head"]


@dataclass(frozen=True)
class Job:
    """One session's part of a step, and the cursor that a commit of it leaves behind."""

    session: Session  # as it was when the job was made
    what: Work
    entry: Entry
    progress: Progress | None
    poses: list[list[float]]
    first_pose: int  # index of poses[0] in its request
    cursor: str
    cursor_done: int
    is_last: bool  # nothing of the request is left afterwards


def next_job(owned: Owned, chunk_frames: int) -> Job | None:
    """What this session needs next, or None if its log is done."""
    if not owned.entries:
        return None
    session, entry = owned.session, owned.entries[0]
    progress = owned.progress.get(entry.id)
    if session.state == "failed" or (progress is not None and progress.cancel_requested):
        return _whole(session, "skip", entry, progress, [])
    message = entry.message
    if isinstance(message, Init | Observe):
        return _whole(session, "observe", entry, progress, [message.pose])
    if isinstance(message, LivePose):
        return _whole(session, "chunk", entry, None, [message.pose])
    if isinstance(message, Generate):
        return _chunk(owned, message, chunk_frames)
    return _whole(session, "head", entry, progress, [])


def _whole(
    session: Session,
    what: Work,
    entry: Entry,
    progress: Progress | None,
    poses: list[list[float]],
) -> Job:
    return Job(session, what, entry, progress, poses, 0, entry.entry, 0, True)


def _chunk(owned: Owned, message: Generate, chunk_frames: int) -> Job:
    entry, done = owned.entries[0], owned.cursor_done
    poses = message.poses[done : done + chunk_frames]
    is_last = done + len(poses) == len(message.poses)
    cursor = entry.entry if is_last else owned.cursor
    left = 0 if is_last else done + len(poses)
    progress = owned.progress.get(entry.id)
    return Job(owned.session, "chunk", entry, progress, poses, done, cursor, left, is_last)


class Scheduler:
    """Round robin over sessions, batched by shape."""

    def __init__(self, max_batch: int) -> None:
        self._max_batch = max_batch
        self._served: dict[str, int] = {}  # session -> tick of its last step
        self._tick = itertools.count()
        self._alone: set[str] = set()

    def pick(self, jobs: Iterable[Job]) -> list[Job]:
        """The next step: the job that waited longest and those of its shape."""
        waiting = sorted(
            jobs, key=lambda job: (self._served.get(job.session.id, -1), job.session.id)
        )
        if not waiting:
            return []
        head = waiting[0]
        batch = [job for job in waiting if _shape(job) == _shape(head)][: self._max_batch]
        batch = [head] if head.session.id in self._alone else self._without_alone(batch)
        for job in batch:
            self._served[job.session.id] = next(self._tick)
        self._alone -= {job.session.id for job in batch}
        return batch

    def isolate(self, sessions: Iterable[str]) -> None:
        """Step each of these alone once: one of them broke the batch they were in."""
        self._alone |= set(sessions)

    def forget(self, session: str) -> None:
        self._served.pop(session, None)
        self._alone.discard(session)

    def _without_alone(self, batch: list[Job]) -> list[Job]:
        return [job for job in batch if job.session.id not in self._alone]


def _shape(job: Job) -> tuple[str, int]:
    return job.what, len(job.poses)
