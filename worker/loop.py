"""A worker's loop: claim -> schedule -> step -> commit.

Tasks beside the loop pull sessions, listen for news of those owned, renew leases, report and sweep;
the step itself runs in a thread of its own. Whatever goes wrong, a World is only as good as what
was committed: if its step failed or its commit was refused it is dropped and restored from its
segments. Publishing does not overlap with the next step yet.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
import traceback
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import structlog
from redis.exceptions import RedisError

from service.control import ControlPlane
from service.errors import GenerationFailed, LeaseLost, MirageError, SegmentError, StoreDown
from service.requests import Init, Observe
from service.segments import Upload, segment_id
from service.sessions import Session
from service.settings import Settings
from service.tasks import end
from service.workers import WorkerRecord
from worker import commits, heads
from worker.faults import Faults
from worker.holdings import Holdings
from worker.memory import MEMORIES
from worker.residency import Residency
from worker.runner import Runner, world_bytes
from worker.scheduler import Job, Scheduler
from worker.world import Increment, World

LOG = structlog.get_logger()
TRANSIENT = (RedisError, StoreDown, OSError)  # waited out: nothing is wrong with the request
BACK_OFF_S = 0.3
T = TypeVar("T")


@dataclass
class Task:
    """One job of a step, with all it needs."""

    job: Job
    world: World
    upload: Upload | None = None


class Worker:
    def __init__(
        self, control: ControlPlane, settings: Settings, runner: Runner, faults: Faults
    ) -> None:
        self.id = f"w{secrets.token_hex(8)}"
        self._control, self._settings, self._runner = control, settings, runner
        self._faults = faults
        self._holdings = Holdings(control, settings, self.id, faults, on_lost=self._lost)
        self._scheduler = Scheduler(settings.max_batch)
        self._residency: Residency[World] = Residency(settings.resident_bytes)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="step")
        self._stopping = False
        self._problem = ""
        self._started_s = time.time()

    def stop(self) -> None:
        """Drain: finish the step, hand the sessions over, return from `run`."""
        self._stopping = True
        self._holdings.news.set()

    async def run(self) -> None:
        """Serve until `stop`; Redis or a store that does not answer is waited out."""
        await self._holdings.open()
        await self._report()
        once = (self._holdings.pull, self._holdings.listen, self._beat)
        beside = [asyncio.create_task(self._repeat(one)) for one in once]
        beside.append(asyncio.create_task(self._control.sweep_forever()))
        try:
            while not self._stopping:
                await self._guarded(self._turn)
        finally:
            await end(beside)
            self._thread.shutdown()
        await self._guarded(self._leave)

    async def _leave(self) -> None:
        """What can't be said now, the expiry of the leases says later."""
        await self._holdings.hand_over()
        await self._control.workers.leave(self.id)

    async def _repeat(self, once: Callable[[], Awaitable[None]]) -> None:
        while True:
            await self._guarded(once)

    async def _guarded(self, once: Callable[[], Awaitable[None]]) -> None:
        """Wait out what passes; the reason is reported with the next heartbeat."""
        try:
            await once()
        except TRANSIENT as error:
            self._problem = f"{type(error).__name__}: {error}"
            LOG.warning("waiting", worker=self.id, error=self._problem)
            self._holdings.invalidate_all()
            await asyncio.sleep(BACK_OFF_S)

    async def _beat(self) -> None:
        await asyncio.sleep(self._settings.lease_s / 3)
        await self._holdings.renew()
        await self._report()

    async def _report(self) -> None:
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
                problem=self._problem,
                started_s=self._started_s,
            )
        )

    def _lost(self, session: str) -> None:
        self._residency.drop(session)
        self._scheduler.forget(session)

    async def _turn(self) -> None:
        """Do one step, or wait for news."""
        self._holdings.news.clear()
        batch = self._scheduler.pick(await self._holdings.jobs())
        if batch:
            await self._step(batch)
        elif not self._stopping:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._holdings.news.wait(), timeout=BACK_OFF_S)
        self._problem = ""

    async def _step(self, batch: Sequence[Job]) -> None:
        """Do these jobs; what fails drops its Worlds and costs only this step."""
        try:
            await self._attempt(batch)
        except TRANSIENT:
            self._drop(batch)
            raise
        except Exception as error:  # noqa: BLE001 the job boundary
            sessions = [job.session.id for job in batch]
            LOG.error("step failed", sessions=sessions, trace=traceback.format_exc())
            self._drop(batch)
            await self._broke(batch, error)
        finally:
            self._residency.unpin(job.session.id for job in batch)

    def _drop(self, batch: Sequence[Job]) -> None:
        for job in batch:
            self._residency.drop(job.session.id)
            self._holdings.invalidate(job.session.id)

    async def _broke(self, batch: Sequence[Job], error: Exception) -> None:
        """Find out whose fault it was by stepping each alone, or fail the one that is."""
        if len(batch) > 1:
            self._scheduler.isolate(job.session.id for job in batch)
            return
        if not isinstance(error, MirageError):
            seen = f"{type(error).__name__}: {error}"
            error = GenerationFailed(f"the model could not do this: {seen}")
        await self._fail(batch[0], error)

    async def _fail(self, job: Job, error: MirageError) -> None:
        LOG.error("request failed", session=job.session.id, error=error.detail)
        await self._holdings.commit(job.session.id, commits.failed(job, error))

    async def _attempt(self, batch: Sequence[Job]) -> None:
        if batch[0].what == "skip":
            for job in batch:
                await self._holdings.commit(job.session.id, commits.skipped(job))
            return
        if batch[0].what == "head":
            for job in batch:
                await self._head(job)
            return
        tasks = [task for job in batch if (task := await self._prepare(job))]
        if not tasks:
            return
        increments = await self._in_thread(lambda: self._compute(tasks))
        pairs = zip(tasks, increments, strict=True)
        ends = await asyncio.gather(
            *(self._publish(task, increment) for task, increment in pairs), return_exceptions=True
        )
        for ended in ends:
            if isinstance(ended, BaseException):
                raise ended

    async def _head(self, job: Job) -> None:
        lease = self._holdings.lease(job.session.id)
        if lease is None:
            return
        try:
            change = await heads.execute(self._control, job, lease)
        except LeaseLost:
            self._holdings.forget(job.session.id)
        except StoreDown:
            raise
        except MirageError as error:
            await self._fail(job, error)
        else:
            if change is not None:
                await self._holdings.commit(job.session.id, change)
            self._holdings.invalidate(job.session.id)

    async def _prepare(self, job: Job) -> Task | None:
        """The World of a job, restored if it is not here; what can't be restored fails the job."""
        session, message = job.session, job.entry.message
        try:
            world = self._residency.pin(session.id, session.tip)
            if world is None:
                world = await self._restore(session)
            if not isinstance(message, Init | Observe):
                return Task(job, world)
            upload = await self._control.segments.get_upload(session.id, message.blob)
            return Task(job, world, upload)
        except (SegmentError, GenerationFailed) as error:
            await self._fail(job, error)
            return None

    async def _restore(self, session: Session) -> World:
        store = self._control.segments
        entries = await self._control.frames.manifest(session.id)
        segments = [await store.get(session.id, entry.id) for entry in entries]
        world = await self._in_thread(lambda: self._runner.restore(session, segments))
        self._residency.put(session.id, session.tip, world, world_bytes(world), pinned=True)
        return world

    def _compute(self, tasks: Sequence[Task]) -> list[Increment]:
        if tasks[0].job.what == "observe":
            return [self._observe(task) for task in tasks]
        return self._runner.step([task.world for task in tasks], [task.job for task in tasks])

    def _observe(self, task: Task) -> Increment:
        assert task.upload is not None
        return self._runner.observe(task.world, task.job, task.upload)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def _publish(self, task: Task, increment: Increment) -> None:
        """Store the segment, then commit it with its frames."""
        job, world, store = task.job, task.world, self._control.segments
        session = job.session.id
        frames = await self._in_thread(lambda: self._runner.frames(job, increment))
        data = await self._in_thread(lambda: self._runner.pack(job, increment, frames))
        lease = self._holdings.lease(session)
        if lease is None:  # lost during the step
            return
        segment = segment_id(job.session.num_segments, lease, data)
        self._faults.at("before_put")
        await store.put(session, segment, data)
        self._faults.at("after_put")
        stats = world.memory.stats()
        size = commits.WorldSize(world.next_frame, stats.num_points, world_bytes(world))
        change = commits.finished(job, segment, data, frames, size, self._runner.weights)
        if await self._holdings.commit(session, change):
            self._residency.put(session, segment, world, size.num_bytes, pinned=True)
        else:
            await store.delete(session, segment)
