"""A worker's loop: claim -> prepare -> schedule -> step -> publish.

Only the step is waited for: Worlds are restored before it and chunks are published after it, beside
other steps. Tasks beside the loop pull sessions, listen for news of those owned, renew leases,
report and sweep. Whatever goes wrong, a World is only as good as what was committed: if its step or
its commit failed it is dropped and restored from its segments.
"""

from __future__ import annotations

import asyncio
import os
import platform
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import structlog

from service.brief import Brief
from service.control.plane import ControlPlane
from service.control.workers import WorkerRecord
from service.settings import Settings
from service.tasks import end
from worker.memory import MEMORIES
from worker.serving.beside import Beside
from worker.serving.faults import Faults
from worker.serving.holdings import Holdings
from worker.serving.metrics import Metrics
from worker.serving.preparer import Preparer, Task
from worker.serving.publisher import Publisher
from worker.serving.residency import Residency
from worker.serving.runner import Made, Runner
from worker.serving.scheduler import Scheduler
from worker.serving.trouble import TRANSIENT, Trouble, attempt
from worker.world import World

LOG = structlog.get_logger()
NEWS_WAIT_S = 0.3
BRIEF_STEP_S = 0.002  # a shorter step is done on the event loop
THREADS_BESIDE = 2  # that encode, pack and restore; both leave the interpreter to others


class Worker:
    def __init__(
        self,
        control: ControlPlane,
        settings: Settings,
        runner: Runner,
        faults: Faults,
        metrics: Metrics | None = None,
        metrics_port: int = 0,  # where these are served, for others to know
    ) -> None:
        self.id = f"w{secrets.token_hex(8)}"
        self.metrics = metrics = metrics or Metrics()
        self._control, self._settings, self._runner = control, settings, runner
        self._trouble = Trouble(self.id, metrics)
        self._holdings = Holdings(control, settings, self.id, faults, metrics, self._lost)
        self._scheduler = Scheduler(settings.max_batch)
        self._residency = residency = Residency[World](settings.resident_bytes)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="step")
        self._steps = Brief(BRIEF_STEP_S, self._thread)
        self._beside = pool = ThreadPoolExecutor(THREADS_BESIDE, thread_name_prefix="beside")
        beside = Beside(pool, THREADS_BESIDE)
        common = (control, runner, self._holdings, residency)
        self._preparer = Preparer(*common, pool, metrics, self._trouble)
        self._publisher = Publisher(*common, beside, faults, metrics, self._trouble)
        self._stopping = False
        self._metrics_port, self._started_s = metrics_port, time.time()

    def stop(self) -> None:
        """Drain: finish the step, publish it, hand the sessions over, return from `run`."""
        self._stopping = True
        self._holdings.news.set()

    async def run(self) -> None:
        """Serve until `stop`; Redis or a store that does not answer is waited out."""
        await self._holdings.open()
        await self._report()
        holdings = self._holdings
        taking = [self._forever(one) for one in (holdings.pull, holdings.hear, holdings.listen)]
        beside = [self._forever(self._beat), self._forever(self._tick)]
        beside.append(asyncio.create_task(self._control.sweep_forever()))
        try:
            while not self._stopping:
                await self._guarded(self._turn)
            await end(taking)
            await self._preparer.close()
            await self._publisher.drain()
        finally:
            await end([*taking, *beside])
            await holdings.close()
            self._thread.shutdown()
            self._beside.shutdown()
        await self._guarded(self._leave)

    async def _leave(self) -> None:
        """What can't be said now, the expiry of the leases says later."""
        await self._holdings.hand_over()
        await self._control.workers.leave(self.id)

    def _forever(self, once: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        async def repeat() -> None:
            while True:
                try:
                    await self._guarded(once)
                except Exception:  # without ears or a pulse it would be worse off
                    LOG.exception("task failed", task=once.__name__)
                    self._holdings.invalidate_all()
                    await asyncio.sleep(NEWS_WAIT_S)

        return asyncio.create_task(repeat())

    async def _guarded(self, once: Callable[[], Awaitable[None]]) -> None:
        """Wait out what passes; the reason is reported with the next heartbeat."""
        try:
            await once()
        except TRANSIENT as error:
            self._trouble.note(error)
            self._holdings.invalidate_all()
            await self._trouble.wait()

    async def _tick(self) -> None:
        """Look around now and then, whatever the news: one timer, not one per turn."""
        await asyncio.sleep(NEWS_WAIT_S)
        self.metrics.pulse.turned()
        self._holdings.news.set()

    async def _beat(self) -> None:
        await asyncio.sleep(self._settings.lease_s / 3)
        await self._holdings.renew()
        await self._report()

    async def _report(self) -> None:
        await self._measure()
        await self._control.workers.beat(
            WorkerRecord(
                id=self.id,
                weights=self._runner.weights,
                backbone=self._settings.backbone,
                device=self._runner.engine.cfg.device,
                memories=list(MEMORIES),
                capacity=self._settings.max_batch,
                num_sessions=len(self._holdings),
                num_bytes=self._residency.num_bytes,
                problem=self._trouble.problem,
                host=platform.node(),
                pid=os.getpid(),
                metrics_port=self._metrics_port,
                started_s=self._started_s,
            )
        )

    async def _measure(self) -> None:
        depth, age_s = await self._holdings.queue()
        self.metrics.queue(depth, age_s)
        self.metrics.residency(self._residency, self._runner.engine.cfg.device)
        self.metrics.owned(self._holdings.states())
        self.metrics.swept(self._control.sweeper.num_expired, self._control.sweeper.num_removed)

    def _lost(self, session: str) -> None:
        self._residency.drop(session)
        self._scheduler.forget(session)

    async def _turn(self) -> None:
        """Do one step, or wait for news."""
        self._holdings.news.clear()
        if await self._trouble.wait():
            await self._control.segments.ping()
        jobs = self._scheduler.order(await self._holdings.jobs(), time.monotonic())
        tasks = self._preparer.ready(jobs)
        ready = {task.job.session.id: task for task in tasks if not self._is_over(task)}
        batch = self._scheduler.pick([task.job for task in ready.values()])
        taken = [ready[job.session.id].upto(job) for job in batch]
        if taken:
            await self._step(taken)
            if len(taken) < len(jobs) or any(task.held.may_have_work for task in taken):
                return
        elif self._trouble.problem and self._holdings.are_at_rest():
            await self._try_all()
        if not self._stopping:
            await self._holdings.news.wait()

    async def _try_all(self) -> None:
        """Nothing is to be done that would show whether the trouble is over."""
        await self._control.redis.ping()
        await self._control.segments.ping()
        self._trouble.over()

    def _is_over(self, task: Task) -> bool:
        """Begin what needs no model: whether that is all there is to do."""
        if task.error is None and task.job.what in ("chunk", "observe"):
            return False
        self._begin(task)
        if task.error is not None:
            self._publisher.fail(task, task.error)
        elif task.job.what == "skip":
            self._publisher.skip(task)
        else:
            self._publisher.head(task)
        return True

    def _begin(self, task: Task) -> None:
        if task.resident is not None:
            self._residency.pin(task.resident)
        self._preparer.take(task)
        task.held.begin(task.job)

    async def _step(self, batch: Sequence[Task]) -> None:
        """Do these jobs; what fails costs only this step."""
        for task in batch:
            self._begin(task)
        self.metrics.batch_size.observe(len(batch))
        made = await attempt(self._compute(batch))
        if isinstance(made, Exception):
            self._broke(batch, made)
            return
        self.metrics.stages(made[0][0].increment.timings_ms)
        for task, some in zip(batch, made, strict=True):
            assert task.resident is not None
            session, last = task.job.session.id, some[-1]
            self._residency.resize(session, task.resident, last.held_bytes, last.size.num_points)
        self._publisher.finish(batch, made)

    async def _compute(self, batch: Sequence[Task]) -> list[list[Made]]:
        worlds = [task.resident.world for task in batch if task.resident is not None]
        jobs, uploads = [task.job for task in batch], [task.uploads for task in batch]
        with self.metrics.pulse.stepping():
            return await self._steps.run(partial(self._runner.step, worlds, jobs, uploads))

    def _broke(self, batch: Sequence[Task], error: Exception) -> None:
        """Find out whose fault it was by stepping each alone, or fail the one that is.

        Where memory ran out, Worlds that are not at work make room before anyone is blamed.
        """
        sessions = [task.held.session for task in batch]
        freed = self._preparer.make_room(error)
        if len(batch) == 1 and not batch[0].job.more and not freed:
            self._publisher.fail(batch[0], error)
            return
        LOG.error("step failed", sessions=sessions, error=f"{type(error).__name__}: {error}")
        self._scheduler.isolate(sessions)
        for task in batch:
            self._publisher.discard(task)
