"""What a step made becomes segments and commits: all of its sessions together, each on its own.

Frames are encoded and packed for all sessions in one go, stored in one, committed in one round
trip; each session has its own verdict, and what fails for one costs the others nothing. A task, a
thread's turn or a round trip for each would cost far more than a small frame does.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from service.control.frames import Frame
from service.control.leases import Commit
from service.control.plane import ControlPlane
from service.store.segments import segment_id
from service.tracing import record_step
from worker.serving import commits
from worker.serving.beside import Beside
from worker.serving.faults import Faults
from worker.serving.held import Held
from worker.serving.holdings import Holdings
from worker.serving.metrics import Metrics, age_s
from worker.serving.runner import Made, Runner
from worker.serving.scheduler import Job


@dataclass(eq=False)
class Part:
    """One session's part of a step, on its way."""

    held: Held
    job: Job  # as it is to be committed, once its turn has come
    made: Sequence[Made]  # of this job, then of those that follow it
    followers: Sequence[Job]
    frames: Sequence[Frame] = ()
    segment: str = ""
    data: bytes = b""
    change: Commit | None = None
    outcome: str | Exception | None = None  # the tip it leaves behind, or why it leaves none

    def goes_on(self) -> bool:
        """Whether more was made of it in this step; if so, that is what it is about now."""
        if not self.followers or not isinstance(self.outcome, str):
            return False
        self.job, self.followers = self.followers[0].at(self.outcome), self.followers[1:]
        self.made, self.outcome = self.made[1:], None
        return True


class Publication:
    def __init__(
        self,
        control: ControlPlane,
        runner: Runner,
        holdings: Holdings,
        beside: Beside,
        faults: Faults,
        metrics: Metrics,
    ) -> None:
        self._control, self._runner, self._holdings = control, runner, holdings
        self._beside, self._faults, self._metrics = beside, faults, metrics

    async def encode(self, parts: Sequence[Part]) -> list[Part]:
        """Make the frames, before it is their turn; those parts where it worked."""
        works = [partial(self._encode, part) for part in parts]
        return _good(parts, await self._beside.run(works))

    async def publish(self, parts: Sequence[Part]) -> list[Part]:
        """Pack, store and commit what was encoded; those parts that were committed."""
        works = [partial(self._pack, part) for part in parts]
        parts = _good(parts, await self._beside.run(works))
        for _ in parts:
            self._faults.at("before_put")
        objects = [(part.held.session, part.segment, part.data) for part in parts]
        with self._metrics.store("put"):
            parts = _good(parts, await self._control.segments.put_all(objects))
        for _ in parts:
            self._faults.at("after_put")
        changes = [(part.held, part.change) for part in parts if part.change is not None]
        accepted = await self._holdings.commit_all(changes)
        done = [
            part
            for part, verdict in zip(parts, accepted, strict=True)
            # refused: an orphan for the collection, or for another look into the session's grave
            if _went_well(part, verdict) and verdict
        ]
        for part in done:
            part.outcome = part.segment
            self._count(part)
        self._metrics.committed([(one.job.entry.message.kind, len(one.frames)) for one in done])
        return done

    def _encode(self, part: Part) -> None:
        made = part.made[0]
        part.frames = self._runner.frames(part.job, made.increment, made.size)

    def _pack(self, part: Part) -> None:
        job, made, weights = part.job, part.made[0], self._runner.weights
        part.data = data = self._runner.pack(job, made.increment, part.frames)
        part.segment = segment_id(job.session.num_segments, part.held.lease, data)
        part.change = commits.finished(job, part.segment, data, part.frames, made.size, weights)

    def _count(self, part: Part) -> None:
        metrics, job, num_frames = self._metrics, part.job, len(part.frames)
        if job.entry.message.kind == "init":
            metrics.first_frame_s.observe(time.time() - job.session.created_s)
        if job.is_live:
            metrics.live_frame(age_s(job.entry.entry))
        metrics.interval(part.held.committed_s, num_frames)
        part.held.committed_s = time.monotonic()
        if num_frames:
            _trace(part)


def _trace(part: Part) -> None:
    parent, began_ns = part.job.entry.message.trace, _began_ns(part.made[0].increment.timings_ms)
    stages_ms, frame = part.frames[0].timings_ms, part.frames[0].frame
    record_step(parent, began_ns, stages_ms, session=part.held.session, frame=frame)


def _began_ns(timings_ms: Mapping[str, float]) -> int:
    """When a step that has just ended began, since 1970."""
    return time.time_ns() - int(1e6 * sum(timings_ms.values()))


def _good(parts: Sequence[Part], results: Sequence[object]) -> list[Part]:
    """Those whose result is no error."""
    pairs = zip(parts, results, strict=True)
    return [part for part, result in pairs if _went_well(part, result)]


def _went_well(part: Part, result: object) -> bool:
    """Whether it is no error; one is noted."""
    if isinstance(result, Exception):
        part.outcome = result
        return False
    return True
