"""What a step made is published beside the next step: encode, pack, store, commit.

The chunks of one session are committed in order, and at most one runs ahead of the one that is
being committed. If a commit is refused or fails, the World is dropped, whatever ran ahead is
discarded, and the World is restored from what was committed. The accelerator waits for none of it.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

import structlog

from service.control import ControlPlane
from service.errors import GenerationFailed, LeaseLost, MirageError
from service.frames import Frame
from service.leases import Commit
from service.segments import segment_id
from service.tracing import record_step
from worker import commits, heads
from worker.beside import Beside
from worker.faults import Faults
from worker.holdings import Held, Holdings
from worker.metrics import Metrics, age_s
from worker.preparer import Task
from worker.residency import Residency
from worker.runner import Made, Runner
from worker.scheduler import Job
from worker.trouble import TRANSIENT, Trouble, attempt
from worker.world import World

LOG = structlog.get_logger()
Before = asyncio.Task[bool] | None  # whether the job before was committed; None: there is none


def _began_ns(timings_ms: Mapping[str, float]) -> int:
    """When a step that has just ended began, since 1970."""
    return time.time_ns() - int(1e6 * sum(timings_ms.values()))


class Publisher:
    def __init__(
        self,
        control: ControlPlane,
        runner: Runner,
        holdings: Holdings,
        residency: Residency[World],
        beside: Beside,
        faults: Faults,
        metrics: Metrics,
        trouble: Trouble,
    ) -> None:
        self._control, self._runner, self._holdings = control, runner, holdings
        self._residency, self._beside = residency, beside
        self._faults, self._metrics, self._trouble = faults, metrics, trouble
        self._running: set[asyncio.Task[bool]] = set()

    def finish(self, task: Task, made: Sequence[Made]) -> None:
        """Publish what a step made of this task: of each of its observations, or its chunk."""
        self._start(task, lambda before: self._finish(task, made, before))

    def skip(self, task: Task) -> None:
        """The request is over without being done."""
        self._start(task, lambda before: self._end(task, commits.skipped, before))

    def head(self, task: Task) -> None:
        """Let the session's head be moved."""
        self._start(task, lambda before: self._head(task, before))

    def fail(self, task: Task, error: Exception) -> None:
        """End the request with this error, once everything before it is committed."""
        task.held.is_halted = True
        self._start(task, lambda before: self._fail(task, error, before))

    def discard(self, task: Task) -> None:
        """Forget the World and do this job again."""
        task.held.is_halted = True
        self._start(task, lambda before: self._discard(before))

    async def drain(self) -> None:
        """Until everything is committed, refused or given up."""
        while self._running:
            await asyncio.wait(self._running)

    def _start(self, task: Task, work: Callable[[Before], Awaitable[str | None]]) -> None:
        """Run `work`, which returns the tip it leaves behind, in its place behind others."""
        before = task.held.committing if len(task.held.ahead) > 1 else None
        running = asyncio.create_task(self._run(task, work(before), before))
        task.held.committing = running
        self._running.add(running)
        running.add_done_callback(self._running.discard)

    async def _run(self, task: Task, work: Awaitable[str | None], before: Before) -> bool:
        tip = await attempt(work)
        if isinstance(tip, Exception):
            await self._went_wrong(task, tip, before)
            tip = None
        resident = task.resident
        if resident is not None:
            if tip is None:
                self._residency.discard(task.held.session, resident)
            else:
                resident.tip = tip
            self._residency.unpin(resident)
        task.held.end(task.job, tip)
        self._holdings.news.set()
        return tip is not None

    async def _went_wrong(self, task: Task, error: Exception, before: Before) -> None:
        """Wait out what passes; anything else ends the request, or at least this attempt."""
        if isinstance(error, TRANSIENT):
            self._trouble.note(error)
            self._holdings.invalidate_all()
            return
        told = await attempt(self._fail(task, error, before))
        if isinstance(told, Exception):
            self._trouble.note(told)

    async def _finish(self, task: Task, made: Sequence[Made], before: Before) -> str | None:
        segment = await self._first(task, made[0], before)
        for follower, one in zip(task.job.more, made[1:], strict=True):
            if segment is None:
                return None
            segment = await self._next(task, follower.at(segment), one)
        return segment

    async def _next(self, task: Task, job: Job, made: Made) -> str | None:
        encode = partial(self._runner.encoded, job, made.increment, made.size)
        frames, data = await self._beside.run(encode)
        return await self._commit(task, job, data, frames, made)

    async def _first(self, task: Task, made: Made, before: Before) -> str | None:
        increment, began_ns = made.increment, _began_ns(made.increment.timings_ms)
        runner, beside = self._runner, self._beside
        if before is None or before.done():  # its turn is now: pack on the same way
            job = await self._in_turn(task, before)
            if job is None:
                return None
            frames, data = await beside.run(partial(runner.encoded, job, increment, made.size))
        else:
            frames = await beside.run(partial(runner.frames, task.job, increment, made.size))
            job = await self._in_turn(task, before)
            if job is None:
                return None
            data = await beside.run(partial(runner.pack, job, increment, frames))
        segment = await self._commit(task, job, data, frames, made)
        if segment is not None and frames:
            parent, stages_ms = job.entry.message.trace, frames[0].timings_ms
            record_step(parent, began_ns, stages_ms, session=job.session.id, frame=frames[0].frame)
        return segment

    async def _commit(
        self, task: Task, job: Job, data: bytes, frames: Sequence[Frame], made: Made
    ) -> str | None:
        segment = segment_id(job.session.num_segments, task.held.lease, data)
        self._faults.at("before_put")
        with self._metrics.store("put"):
            await self._control.segments.put(job.session.id, segment, data)
        self._faults.at("after_put")
        change = commits.finished(job, segment, data, frames, made.size, self._runner.weights)
        if not await self._holdings.commit(task.held, change):
            return None  # the segment stays, an orphan for the collection
        self._trouble.over()
        self._count(task.held, job, frames)
        await self._control.heads.checkpoint(job.session.id, job.session.num_segments + 1)
        return segment

    async def _end(self, task: Task, change: Callable[[Job], Commit], before: Before) -> str | None:
        job = await self._in_turn(task, before)
        if job is None or not await self._holdings.commit(task.held, change(job)):
            return None
        return job.session.tip

    async def _fail(self, task: Task, error: Exception, before: Before) -> None:
        """The request failed; its World is dropped, as a step may have been half done."""
        if not isinstance(error, MirageError):
            trace = "".join(traceback.format_exception(error))
            LOG.error("step failed", session=task.held.session, trace=trace)
            seen = f"{type(error).__name__}: {error}"
            error = GenerationFailed(f"the model could not do this: {seen}")
        LOG.error("request failed", session=task.held.session, error=error.detail)
        self._metrics.failures.inc()
        problem = error
        await self._end(task, lambda job: commits.failed(job, problem), before)

    async def _discard(self, before: Before) -> None:
        if before is not None:
            await before

    async def _head(self, task: Task, before: Before) -> None:
        """Afterwards the session is read again, and its World only kept if its tip still is."""
        job = await self._in_turn(task, before)
        if job is None:
            return
        try:
            change = await heads.execute(self._control, job, task.held.lease)
        except LeaseLost:
            self._holdings.forget_this(task.held)
            return
        if change is not None:
            await self._holdings.commit(task.held, change)

    async def _in_turn(self, task: Task, before: Before) -> Job | None:
        """The job as it is to be committed, once everything before it is; None if that failed."""
        if before is not None and not await before:
            return None
        resident = task.resident
        if resident is None:
            return task.job
        if task.job.entry.id == task.held.cancelled:
            return None
        is_good = self._residency.holds(task.held.session, resident)
        return task.job.at(resident.tip) if is_good else None

    def _count(self, held: Held, job: Job, frames: Sequence[Frame]) -> None:
        metrics, kind = self._metrics, job.entry.message.kind
        metrics.chunks.labels(kind).inc()
        metrics.frames.labels(kind).inc(len(frames))
        if kind == "init":
            metrics.first_frame_s.observe(time.time() - job.session.created_s)
        if job.is_live:
            metrics.live_frame(age_s(job.entry.entry))
        metrics.interval(held.committed_s, len(frames))
        held.committed_s = time.monotonic()
