"""What a step made is published beside the next step, in order: encode, pack, store, commit.

The chunks of one session are committed in order, and at most one runs ahead of the one that is
being committed. If a commit is refused or fails, the World is dropped, whatever ran ahead is
discarded, and the World is restored from what was committed. The accelerator waits for none of it.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import Any

import structlog

from service.control.heads import is_due
from service.control.leases import Commit
from service.control.plane import ControlPlane
from service.errors import GenerationFailed, LeaseLost, MirageError, problem_of
from worker.serving import commits, heads
from worker.serving.beside import Beside
from worker.serving.faults import Faults
from worker.serving.holdings import Holdings
from worker.serving.metrics import Metrics
from worker.serving.preparer import Task
from worker.serving.publication import Part, Publication
from worker.serving.residency import Residency
from worker.serving.runner import Made, Runner
from worker.serving.scheduler import Job
from worker.serving.trouble import TRANSIENT, Trouble, attempt
from worker.world import World

LOG = structlog.get_logger()
Before = asyncio.Task[frozenset[str]] | None  # the sessions whose jobs before were committed
Befores = Sequence[Before]  # of each task; None: nothing is ahead of it
Outcome = str | Exception | None  # the tip that is left behind, or why there is none


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
        self._control, self._holdings, self._residency = control, holdings, residency
        self._metrics, self._trouble = metrics, trouble
        self._publication = Publication(control, runner, holdings, beside, faults, metrics)
        self._running: set[asyncio.Task[Any]] = set()

    def finish(self, tasks: Sequence[Task], made: Sequence[Sequence[Made]]) -> None:
        """Publish what a step made of these tasks: of each its observations, or its chunk.

        Together, where a put is next to nothing; where the store is far away each on its own, so
        that nobody waits for another's.
        """
        size = len(tasks) if self._control.segments.is_local else 1
        for first in range(0, len(tasks), size):
            some, theirs = tasks[first : first + size], made[first : first + size]
            self._start(some, partial(self._finish, some, theirs))

    def skip(self, task: Task) -> None:
        """The request is over without being done."""
        self._start_one(task, lambda before: self._end(task, commits.skipped, before))

    def head(self, task: Task) -> None:
        """Let the session's head be moved."""
        self._start_one(task, lambda before: self._head(task, before))

    def fail(self, task: Task, error: Exception) -> None:
        """End the request with this error, once everything before it is committed."""
        task.held.is_halted = True
        self._start_one(task, lambda before: self._fail(task, error, before))

    def discard(self, task: Task) -> None:
        """Forget the World and do this job again."""
        task.held.is_halted = True
        self._start_one(task, lambda before: self._discard(before))

    async def drain(self) -> None:
        """Until everything is committed, refused or given up."""
        while self._running:
            await asyncio.wait(self._running)

    def _start_one(self, task: Task, work: Callable[[Before], Awaitable[Outcome]]) -> None:
        async def alone(befores: Befores) -> list[Outcome]:
            return [await attempt(work(befores[0]))]

        self._start([task], alone)

    def _start(
        self, tasks: Sequence[Task], work: Callable[[Befores], Awaitable[Sequence[Outcome]]]
    ) -> None:
        """Run `work`, which returns what becomes of each task, in its place behind others."""
        befores = [task.held.committing if len(task.held.ahead) > 1 else None for task in tasks]
        running = self._spawn(self._run(tasks, work(befores), befores))
        for task in tasks:
            task.held.committing = running

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        running = asyncio.create_task(work)
        self._running.add(running)
        running.add_done_callback(self._running.discard)
        return running

    async def _run(
        self, tasks: Sequence[Task], work: Awaitable[Sequence[Outcome]], befores: Befores
    ) -> frozenset[str]:
        outcomes = await attempt(work)
        if isinstance(outcomes, Exception):
            outcomes = [outcomes] * len(tasks)
        for task, outcome, before in zip(tasks, outcomes, befores, strict=True):
            if isinstance(outcome, Exception):
                await self._went_wrong(task, outcome, before)
            self._over(task, outcome if isinstance(outcome, str) else None)
        self._holdings.stir()
        pairs = zip(tasks, outcomes, strict=True)
        return frozenset(task.held.session for task, tip in pairs if isinstance(tip, str))

    def _over(self, task: Task, tip: str | None) -> None:
        resident = task.resident
        if resident is not None:
            if tip is None:
                self._residency.discard(task.held.session, resident)
            else:
                resident.tip = tip
            self._residency.unpin(resident)
        task.held.end(task.job, tip)

    async def _went_wrong(self, task: Task, error: Exception, before: Before) -> None:
        """Wait out what passes; anything else ends the request, or at least this attempt."""
        if isinstance(error, TRANSIENT):
            self._trouble.note(error)
            self._holdings.invalidate_all()
            return
        told = await attempt(self._fail(task, error, before))
        if isinstance(told, Exception):
            self._trouble.note(told)

    async def _finish(
        self, tasks: Sequence[Task], made: Sequence[Sequence[Made]], befores: Befores
    ) -> list[Outcome]:
        """Encoding need not wait until what runs ahead is committed, all else must."""
        parts = [
            Part(task.held, task.job, some, task.job.more)
            for task, some in zip(tasks, made, strict=True)
        ]
        due = await self._publication.encode(parts)
        for part, task, before in zip(parts, tasks, befores, strict=True):
            job = await self._in_turn(task, before)
            if job is not None:
                part.job = job
            elif part in due:
                due.remove(part)
        while due:
            done = await self._publication.publish(due)
            self._committed(done)
            due = await self._publication.encode([part for part in done if part.goes_on()])
        return [part.outcome for part in parts]

    def _committed(self, parts: Sequence[Part]) -> None:
        if parts:
            self._trouble.over()
        for part in parts:
            if is_due(part.held.session, part.job.session.num_segments + 1):
                self._spawn(self._checkpoint(part.held.session))

    async def _checkpoint(self, session: str) -> None:
        told = await attempt(self._control.heads.checkpoint(session))
        if isinstance(told, Exception):
            self._trouble.note(told)

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
        log = LOG.warning if problem_of(error).status < 500 else LOG.error  # the client's, or ours
        log("request failed", session=task.held.session, error=error.detail)
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
        if before is not None and task.held.session not in await before:
            return None
        resident = task.resident
        if resident is None:
            return task.job
        if task.job.entry.id == task.held.cancelled:
            return None
        is_good = self._residency.holds(task.held.session, resident)
        return task.job.at(resident.tip) if is_good else None
