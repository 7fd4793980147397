"""The sessions that this worker owns: taken from the wake queue, renewed, released, handed over.
Torch-free.

Each is read from Redis when there is news of it and otherwise followed in memory: what a job will
leave behind is known when it begins, so the next can begin before it is committed. What is lost or
refused is forgotten; the truth is what was committed.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterable, Sequence

import structlog
from redis.exceptions import RedisError

from service.control.leases import Commit, Committed, Leases, Owned, following
from service.control.news import Inbox
from service.control.plane import ControlPlane
from service.control.sessions import SessionState
from service.control.wake import Wake, WakeQueue
from service.errors import LeaseLost
from service.settings import Settings
from worker.serving.faults import Faults
from worker.serving.held import Held
from worker.serving.metrics import Metrics
from worker.serving.scheduler import Job, next_job

LOG = structlog.get_logger()
READ_AT_ONCE = 32
REST_EVERY_S = 0.05


class Holdings:
    def __init__(
        self,
        control: ControlPlane,
        settings: Settings,
        worker_id: str,
        faults: Faults,
        metrics: Metrics,
        on_lost: Callable[[str], None],  # a session is no longer ours: drop its World
    ) -> None:
        self._control, self._settings = control, settings
        self._faults, self._metrics = faults, metrics
        self._leases = Leases(control.redis, worker_id, settings.lease_s, settings.frames_kept)
        self._wakes = WakeQueue(control.redis, worker_id, settings.lease_s)
        self._inbox = Inbox(control.redis, worker_id)
        self._held: dict[str, Held] = {}
        self._rested_s = 0.0
        self._on_lost = on_lost
        self.news = asyncio.Event()

    def __len__(self) -> int:
        return len(self._held)

    def __getitem__(self, session: str) -> Held:
        return self._held[session]

    async def open(self) -> None:
        await self._wakes.open()
        await self._inbox.open()

    async def close(self) -> None:
        await self._inbox.close()

    async def pull(self) -> None:
        """Take sessions from the wake queue, while there is room for more work."""
        if len(self._working()) >= 2 * self._settings.max_batch:
            await asyncio.sleep(0.02)
            return
        wait_s = min(1.0, self._settings.lease_s / 2)
        wakes = await self._wakes.pull(self._settings.max_batch, wait_s)
        for wake in wakes or await self._wakes.claim(self._settings.max_batch):
            await self._take(wake)

    async def _take(self, wake: Wake) -> None:
        held = self._held.get(wake.session)
        if held is not None:
            held.is_stale = True
            await self._wakes.ack([wake.message])
        else:
            lease = await self._leases.acquire(wake.session)
            if lease is None:  # gone, or owned by another, who is told in another way
                await self._wakes.ack([wake.message])
                return
            self._held[wake.session] = Held(wake.session, lease, [wake.message])
        self.news.set()

    async def hear(self) -> None:
        """Hear of new requests to sessions that are owned, as they are made."""
        for one in await self._inbox.listen():
            if one is None:
                self.invalidate_all()
            elif one.session in self._held:
                self._held[one.session].hear(one)
        self.news.set()

    async def listen(self) -> None:
        """Hear of what else happens to sessions that are owned, and of what did not get through."""
        for session in await self._wakes.listen(wait_s=1.0):
            self.invalidate(session)
            self.news.set()

    async def renew(self) -> None:
        """Renew every lease; what is lost is forgotten."""
        leases = {session: held.lease for session, held in self._held.items()}
        with self._metrics.redis("renew"):
            lost = await self._leases.renew(leases)
        for session in lost:
            held = self._held.get(session)
            if held is None or held.lease != leases[session]:
                continue
            if await self._leases.is_gone(session):
                LOG.info("session deleted", session=session)
            else:
                LOG.warning("lease lost", session=session)
                self._metrics.leases_lost.inc()
            self.forget_this(held)

    async def jobs(self) -> list[Job]:
        """What each session needs next, the one whose last turn is longest ago first; those that
        need nothing for long are released.
        """
        working = self._working()
        for some in _batched((held for held in working if held.is_stale), READ_AT_ONCE):
            await self._read(some)
        await self._rest_all()
        by_turn = sorted(
            (one for one in working if one.owned and one.owned.entries and self._holds(one)),
            key=lambda held: held.begun,
        )
        found = [(held, self._next(held)) for held in by_turn]
        return [job for held, job in found if job is not None and held.may_begin(job)]

    def _working(self) -> list[Held]:
        """Those that may have work: of hundreds most rest, so a turn goes through all once."""
        return [held for held in self._held.values() if held.may_have_work]

    async def _rest_all(self) -> None:
        """Now and then: most sessions of many rest, and a turn is short."""
        if time.monotonic() - self._rested_s < REST_EVERY_S:
            return
        self._rested_s = time.monotonic()
        for held, owned in [(one, one.owned) for one in self._held.values() if not one.ahead]:
            if owned is not None and not owned.entries:
                held.committed_s = None
                if held.wakes or self._is_over(held, owned):
                    await self._rest(held, owned)

    def _next(self, held: Held) -> Job | None:
        if held.owned is None:
            return None
        job = next_job(held.owned, self._settings.chunk_frames)
        if job is not None:
            held.idle_since_s = time.monotonic()
        return job

    async def _read(self, some: Sequence[Held]) -> None:
        """Read their records and add what is ahead of them."""
        aheads = [list(held.ahead) for held in some]
        for held in some:
            held.is_stale = held.is_void = held.has_moved = False
        found: list[Owned | Exception]
        try:
            with self._metrics.redis("load"):
                found = await self._leases.load_all([(held.session, held.known) for held in some])
        except (RedisError, OSError) as error:
            found = [error] * len(some)
        broken = []
        for held, ahead, owned in zip(some, aheads, found, strict=True):
            if isinstance(owned, LeaseLost):
                self.forget_this(held)
            elif isinstance(owned, ValueError):  # its lease ends, and a newer worker may read it
                LOG.error("session not readable", session=held.session, error=str(owned))
                self.forget_this(held)
            elif isinstance(owned, Exception):
                held.is_stale = True
                broken.append(owned)
            else:
                held.read(owned, ahead)
        if broken:
            raise broken[0]

    async def _rest(self, held: Held, owned: Owned) -> None:
        """A session with nothing to do is kept for a while, then released; its World stays."""
        await self._ack([held])
        if not self._is_over(held, owned):
            return
        self._held.pop(held.session, None)  # first: a wake that comes in between is taken anew
        if await self._leases.release(held.session, held.lease) == "ahead":
            held.is_stale = True
            self._held.setdefault(held.session, held)

    def _is_over(self, held: Held, owned: Owned) -> bool:
        idle_s = time.monotonic() - held.idle_since_s
        return owned.session.state == SessionState.FAILED or idle_s >= self._settings.linger_s

    def stir(self) -> None:
        """Something is over, which others may have waited for; nobody is woken for nothing."""
        if any(held.may_have_work for held in self._held.values()):
            self.news.set()

    async def queue(self) -> tuple[int, float]:
        """How many sessions wait for an owner, and for how long the first of them has."""
        return await self._wakes.waiting()

    def are_at_rest(self) -> bool:
        """Whether no session has work, begun or not."""
        return not any(held.ahead or held.may_have_work for held in self._held.values())

    def states(self) -> dict[str, int]:
        """How many of the sessions are at work, have work that waits, or rest."""
        found = {"working": 0, "waiting": 0, "resting": 0}
        for held in self._held.values():
            found["working" if held.ahead else "waiting" if held.may_have_work else "resting"] += 1
        return found

    def invalidate(self, session: str) -> None:
        """Read the session again before the next step."""
        if session in self._held:
            self._held[session].is_stale = True

    def invalidate_all(self) -> None:
        for held in self._held.values():
            held.is_stale = True

    async def commit(self, held: Held, change: Commit) -> bool:
        """Whether it was accepted; if not, the session is somebody else's and was forgotten."""
        (accepted,) = await self.commit_all([(held, change)])
        if isinstance(accepted, Exception):
            raise accepted
        return accepted

    async def commit_all(self, changes: Sequence[tuple[Held, Commit]]) -> list[bool | Exception]:
        """What `commit` returns or raises for each, in one round trip."""
        ours = [pair for pair in changes if self._holds(pair[0])]
        asked = [(held.session, held.lease, change) for held, change in ours]
        found: list[Committed | Exception] = []
        if asked:
            try:
                with self._metrics.redis("commit"):
                    found = await self._leases.commit_all(asked)
            except (RedisError, OSError) as error:
                found = [error] * len(asked)
        verdicts = {
            held.session: self._verdict(held, change, done)
            for (held, change), done in zip(ours, found, strict=True)
        }
        accepted = [held for held, _ in ours if verdicts[held.session] is True]
        for _ in accepted:
            self._faults.at("before_ack")
        await self._ack(accepted)
        return [verdicts.get(held.session, False) for held, _ in changes]

    def _verdict(self, held: Held, change: Commit, done: Committed | Exception) -> bool | Exception:
        if isinstance(done, LeaseLost):
            LOG.warning("commit refused", reason=done.detail)
            self._metrics.commits_refused.inc()
            self.forget_this(held)
            return False
        if isinstance(done, Exception):
            return done
        known = held.known
        held.committed(None if known is None else following(known, change, done.version))
        self._faults.at("after_commit")
        if done.cancel_requested:
            held.is_stale, held.cancelled = True, change.request_id
        return True

    async def hand_over(self) -> None:
        """Release everything; what has work is woken for others."""
        for session, held in list(self._held.items()):
            if await self._leases.release(session, held.lease, "handover") == "handed over":
                await self._control.requests.wake(session)
            await self._ack([held])
        self._held.clear()

    async def _ack(self, some: Sequence[Held]) -> None:
        wakes = [wake for held in some for wake in held.wakes]
        for held in some:
            held.wakes = []
        await self._wakes.ack(wakes)

    def forget(self, session: str) -> None:
        """Stop owning a session: another worker may commit to it from now on."""
        self._held.pop(session, None)
        self._on_lost(session)

    def forget_this(self, held: Held) -> None:
        if self._holds(held):
            self.forget(held.session)

    def _holds(self, held: Held) -> bool:
        return self._held.get(held.session) is held


def _batched(items: Iterable[Held], size: int) -> Iterable[list[Held]]:
    iterator = iter(items)
    while some := list(itertools.islice(iterator, size)):
        yield some
