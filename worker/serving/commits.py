"""What a finished, failed or skipped job changes: from Job to Commit. Torch-free."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from service.control.frames import Frame, ManifestEntry
from service.control.leases import Commit
from service.control.requests import Init, LivePose, RequestState
from service.control.sessions import SessionState
from service.errors import MirageError, problem_document
from worker.serving.scheduler import Job, advanced


@dataclass(frozen=True)
class WorldSize:
    """What the record says about a World after a step."""

    next_frame: int
    num_points: int
    num_bytes: int


def finished(
    job: Job,
    segment_id: str,
    data: bytes,
    frames: Sequence[Frame],
    size: WorldSize,
    weights: str,
) -> Commit:
    """A step that worked: a segment, its frames, the cursor behind them."""
    session = job.session
    assert size.next_frame == session.next_frame + job.num_frames, "World and record disagree"
    record: dict[str, str | int | float] = {
        "next_frame": size.next_frame,
        "num_points": size.num_points,
        "num_bytes": size.num_bytes,
        "weights": weights,
        "error": "",
    }
    if not job.is_live:  # which began its idle lifetime a moment ago
        now_s = time.time()
        lifetime_s = session.expires_s - session.touched_s
        record |= {"touched_s": now_s, "expires_s": now_s + lifetime_s}
    if frames:
        record["coverage"] = sum(frame.coverage for frame in frames) / len(frames)
    return Commit(
        tip=session.tip,
        cursor=job.cursor,
        cursor_done=job.cursor_done,
        request_id=job.entry.id,
        progress=advanced(job),
        segment=ManifestEntry(
            id=segment_id,
            kind=job.entry.message.kind,
            branch=session.branch,
            first_frame=frames[0].frame if frames else size.next_frame,
            num_frames=len(frames),
            num_bytes=len(data),
            num_points=size.num_points,
            world_bytes=size.num_bytes,
        ),
        frames=frames,
        record=record,
    )


def failed(job: Job, error: MirageError) -> Commit:
    """The request is over; the session goes on, unless it could not even be opened.

    A live pose keeps no progress, so its error is shown by the session's record until the next
    frame.
    """
    problem = problem_document(error)
    record: dict[str, str | int | float] = {}
    if isinstance(job.entry.message, Init):
        record = {"state": SessionState.FAILED.value, "error": json.dumps(problem)}
    elif isinstance(job.entry.message, LivePose):
        record = {"error": json.dumps(problem)}
    return _ended(job, RequestState.FAILED, problem, record)


def skipped(job: Job) -> Commit:
    """A request that is not done (any further): it was cancelled, or its session has failed."""
    if job.session.state == SessionState.FAILED:
        return _ended(job, RequestState.FAILED, job.session.error, {})
    return _ended(job, RequestState.CANCELLED, None, {})


def _ended(
    job: Job,
    state: RequestState,
    problem: dict[str, Any] | None,
    record: dict[str, str | int | float],
) -> Commit:
    progress = job.progress
    if progress is not None:
        progress = progress.model_copy(update={"state": state, "error": problem})
    return Commit(
        tip=job.session.tip,
        cursor=job.entry.entry,
        cursor_done=0,
        request_id=job.entry.id,
        progress=progress,
        record=record,
    )
