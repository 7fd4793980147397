"""What a step needs is brought to hand before it, beside the step that is running: the World,
restored from its segments, and the upload of an observation.

A World is restored only when there is room for it, the most urgent job's first. What was brought
stays pinned until it is used or nobody needs it any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import NamedTuple

import structlog
import torch

from service.control.plane import ControlPlane
from service.control.requests import Init, Observe
from service.control.sessions import Session
from service.errors import GenerationFailed, MirageError, SegmentError
from service.store.segments import Upload
from worker.serving.held import Held
from worker.serving.holdings import Holdings
from worker.serving.metrics import Metrics
from worker.serving.residency import Residency, Resident
from worker.serving.runner import Runner, world_bytes
from worker.serving.scheduler import Job
from worker.serving.trouble import TRANSIENT, Trouble
from worker.world import World

LOG = structlog.get_logger()
EMPTY_WORLD_BYTES = 1 << 16
RESTORES_AT_ONCE = 4
READS_AT_ONCE = 16


class Task(NamedTuple):
    """One job of a step, with all it needs."""

    job: Job
    held: Held
    resident: Resident[World] | None = None  # None: the job is not for the model
    uploads: Sequence[Upload] = ()  # of its observations
    error: MirageError | None = None  # it can't be done, since this could not be brought

    def upto(self, job: Job) -> Task:
        """This task with a job that may have fewer of its observations."""
        if job is self.job:
            return self
        return self._replace(job=job, uploads=self.uploads[: 1 + len(job.more)])


@dataclass
class _Brought:
    """What is kept ready for one session's next job."""

    entry: str  # of the log; another one needs another upload
    resident: Resident[World] | None = None
    uploads: list[Upload] = field(default_factory=list)
    error: MirageError | None = None
    work: asyncio.Task[None] | None = None


class Preparer:
    def __init__(
        self,
        control: ControlPlane,
        runner: Runner,
        holdings: Holdings,
        residency: Residency[World],
        pool: Executor,
        metrics: Metrics,
        trouble: Trouble,
    ) -> None:
        self._control, self._runner, self._holdings = control, runner, holdings
        self._residency, self._pool, self._metrics = residency, pool, metrics
        self._trouble = trouble
        self._brought: dict[str, _Brought] = {}

    def ready(self, ordered: Sequence[Job]) -> list[Task]:
        """Those of the jobs, most urgent first, that can be stepped; begins to bring what others
        need.
        """
        self._release_all_but({job.session.id for job in ordered})
        found = [self._task(job) for job in ordered]
        return [task for task in found if task is not None]

    def take(self, task: Task) -> None:
        """This task begins: what was kept for it is its own, what is still being brought (as it was
        cancelled meanwhile) the next one's.
        """
        self._release(task.job.session.id)

    async def close(self) -> None:
        """Until nothing is being brought any more."""
        works = [kept.work for kept in self._brought.values() if kept.work is not None]
        await asyncio.gather(*works)

    def _task(self, job: Job) -> Task | None:
        session, held = job.session, self._holdings[job.session.id]
        if job.what in ("skip", "head"):
            return Task(job, held)
        kept = self._brought.get(session.id)
        if kept is not None and kept.work is not None:
            return None
        if kept is not None and kept.error is not None and kept.entry == job.entry.entry:
            return Task(job, held, error=kept.error)
        resident = self._residency.find(session.id, None if held.ahead else session.tip)
        needs_upload = isinstance(job.entry.message, Init | Observe)
        has_upload = kept is not None and kept.entry == job.entry.entry
        if resident is not None and (has_upload or not needs_upload):
            uploads = kept.uploads if kept and needs_upload else []
            return Task(job.upto(max(1, len(uploads))), held, resident, uploads)
        if resident is None and (held.ahead or not self._has_room(job)):
            return None
        self._begin(job, resident)
        return None

    def _has_room(self, job: Job) -> bool:
        """Whether its World can be brought now; one that never can is an error."""
        needed, session = _estimate(job.session), job.session.id
        if needed > self._residency.budget_bytes:
            self._metrics.refusals.inc()
            error = GenerationFailed(
                f"the world needs {needed} bytes, this worker keeps "
                f"{self._residency.budget_bytes} (MIRAGE_RESIDENT_BYTES)"
            )
            self._brought[session] = _Brought(job.entry.entry, error=error)
            self._holdings.news.set()
            return False
        restoring = sum(one.work is not None for one in self._brought.values())
        return restoring < RESTORES_AT_ONCE and self._residency.can_reserve(needed)

    def _begin(self, job: Job, resident: Resident[World] | None) -> None:
        session = job.session.id
        self._release(session)
        kept = self._brought[session] = _Brought(job.entry.entry)
        if resident is None:
            self._residency.reserve(session, _estimate(job.session))
        else:
            kept.resident = resident
            self._residency.pin(resident)
        kept.work = asyncio.create_task(self._bring(job, kept))

    async def _bring(self, job: Job, kept: _Brought) -> None:
        try:
            if isinstance(job.entry.message, Init | Observe):
                kept.uploads = await self._uploads(job)
            if kept.resident is None:
                with self._metrics.restore_s.time():
                    world = await self._restore(job.session)
                size = world_bytes(world)
                kept.resident = self._residency.put(job.session.id, job.session.tip, world, size)
        except TRANSIENT as error:
            self._residency.release(job.session.id)
            self._forget(job.session.id, kept)
            self._trouble.note(error)
        except Exception as error:  # noqa: BLE001 the job boundary: else it would begin for ever
            self._residency.release(job.session.id)
            if self.make_room(error):
                self._forget(job.session.id, kept)
            else:
                kept.error = _as_problem(error)
        finally:
            kept.work = None
            self._holdings.news.set()

    def make_room(self, error: Exception) -> int:
        """If memory ran out, drop the Worlds that are not at work; how many bytes that frees."""
        if not isinstance(error, MemoryError | torch.OutOfMemoryError):
            return 0
        self._metrics.out_of_memory.inc()
        freed = self._residency.shed()
        self._runner.free_memory()
        return freed

    async def _uploads(self, job: Job) -> list[Upload]:
        """Of the first observation, and of those behind it up to one that can't be read."""
        found: list[Upload] = []
        for one in (job, *job.more):
            assert isinstance(one.entry.message, Init | Observe)
            try:
                with self._metrics.store("get"):
                    found.append(
                        await self._control.segments.get_upload(
                            job.session.id, one.entry.message.blob
                        )
                    )
            except SegmentError:
                if not found:
                    raise
                break
        return found

    async def _restore(self, session: Session) -> World:
        store, segments = self._control.segments, list[bytes]()
        entries = await self._control.frames.manifest(session.id)
        for first in range(0, len(entries), READS_AT_ONCE):
            some = entries[first : first + READS_AT_ONCE]
            with self._metrics.store("get"):
                reads = (store.get(one.home or session.id, one.id) for one in some)
                segments += await asyncio.gather(*reads)
        return await asyncio.get_running_loop().run_in_executor(
            self._pool, self._runner.restore, session, segments
        )

    def _release_all_but(self, sessions: set[str]) -> None:
        for session in list(self._brought):
            if session not in sessions:
                self._release(session)

    def _release(self, session: str) -> None:
        kept = self._brought.get(session)
        if kept is not None and kept.work is None:
            self._forget(session, kept)

    def _forget(self, session: str, kept: _Brought) -> None:
        if self._brought.get(session) is kept:
            del self._brought[session]
        if kept.resident is not None:
            resident, kept.resident = kept.resident, None
            self._residency.unpin(resident)


def _estimate(session: Session) -> int:
    return max(session.num_bytes, EMPTY_WORLD_BYTES)


def _as_problem(error: Exception) -> MirageError:
    if isinstance(error, MirageError):
        return error
    LOG.error("world not restored", error=repr(error), exc_info=error)
    return GenerationFailed(f"the world can't be brought to hand: {type(error).__name__}: {error}")
