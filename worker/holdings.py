"""The sessions that this worker owns: taken from the wake queue, renewed, released, handed over.
Torch-free.

What is lost or refused is forgotten; the truth is what was committed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from service.control import ControlPlane
from service.errors import LeaseLost
from service.leases import Commit, Leases, Owned
from service.sessions import SessionState
from service.settings import Settings
from service.wake import Wake, WakeQueue
from worker.faults import Faults
from worker.scheduler import Job, next_job

LOG = structlog.get_logger()


@dataclass
class Held:
    """A session that this worker owns."""

    lease: str
    wakes: list[str]  # messages to acknowledge once a step is committed
    owned: Owned | None = None  # None: changed, to be read again
    idle_since_s: float = field(default_factory=time.monotonic)

    @property
    def may_have_work(self) -> bool:
        return self.owned is None or bool(self.owned.entries)


class Holdings:
    def __init__(
        self,
        control: ControlPlane,
        settings: Settings,
        worker_id: str,
        faults: Faults,
        on_lost: Callable[[str], None],  # a session was lost: drop its World
    ) -> None:
        self._control, self._settings, self._faults = control, settings, faults
        self._leases = Leases(control.redis, worker_id, settings.lease_s, settings.frames_kept)
        self._wakes = WakeQueue(control.redis, worker_id, settings.lease_s)
        self._held: dict[str, Held] = {}
        self._on_lost = on_lost
        self.news = asyncio.Event()

    def __len__(self) -> int:
        return len(self._held)

    async def open(self) -> None:
        await self._wakes.open()

    async def pull(self) -> None:
        """Take sessions from the wake queue, while there is room for more work."""
        if sum(held.may_have_work for held in self._held.values()) >= 2 * self._settings.max_batch:
            await asyncio.sleep(0.05)
            return
        wait_s = min(1.0, self._settings.lease_s / 2)
        wakes = await self._wakes.pull(self._settings.max_batch, wait_s)
        for wake in wakes or await self._wakes.claim(self._settings.max_batch):
            await self._take(wake)

    async def _take(self, wake: Wake) -> None:
        held = self._held.get(wake.session)
        if held is not None:
            held.owned = None
            await self._wakes.ack([wake.message])
        else:
            lease = await self._leases.acquire(wake.session)
            if lease is None:  # gone, or owned by another, who is told in another way
                await self._wakes.ack([wake.message])
                return
            self._held[wake.session] = Held(lease, [wake.message])
        self.news.set()

    async def listen(self) -> None:
        """Hear of new requests to sessions that are owned."""
        for session in await self._wakes.listen(wait_s=1.0):
            self.invalidate(session)
            self.news.set()

    async def renew(self) -> None:
        """Renew every lease; what is lost is forgotten."""
        leases = {session: held.lease for session, held in self._held.items()}
        for session in await self._leases.renew(leases):
            if self.lease(session) == leases[session]:
                LOG.warning("lease lost", session=session)
                self.forget(session)

    async def jobs(self) -> list[Job]:
        """What each session needs next; those that need nothing for long are released."""
        found: list[Job] = []
        for session, held in list(self._held.items()):
            if held.owned is None:
                await self._read(session, held)
            job = held.owned and next_job(held.owned, self._settings.chunk_frames)
            if job:
                held.idle_since_s = time.monotonic()
                found.append(job)
            elif held.owned is not None:
                await self._rest(session, held, held.owned)
        return found

    async def _read(self, session: str, held: Held) -> None:
        try:
            held.owned = await self._leases.load(session)
        except LeaseLost:
            self.forget(session)

    async def _rest(self, session: str, held: Held, owned: Owned) -> None:
        """A session with nothing to do is kept for a while, then released; its World stays."""
        await self._ack(held)
        idle_s = time.monotonic() - held.idle_since_s
        if owned.session.state != SessionState.FAILED and idle_s < self._settings.linger_s:
            return
        del self._held[session]  # first: a wake that comes in between is then taken anew
        if await self._leases.release(session, held.lease) == "ahead":
            held.owned = None
            self._held.setdefault(session, held)

    def lease(self, session: str) -> str | None:
        """The lease under which a session is owned now, if it is."""
        held = self._held.get(session)
        return None if held is None else held.lease

    def invalidate(self, session: str) -> None:
        """Read the session again before the next step."""
        if session in self._held:
            self._held[session].owned = None

    def invalidate_all(self) -> None:
        for held in self._held.values():
            held.owned = None

    async def commit(self, session: str, change: Commit) -> bool:
        """Whether it was accepted; if not, the session is somebody else's and was forgotten."""
        held = self._held.get(session)
        if held is None:
            return False
        try:
            await self._leases.commit(session, held.lease, change)
        except LeaseLost as error:
            LOG.warning("commit refused", reason=error.detail)
            self.forget(session)
            return False
        self._faults.at("after_commit")
        held.owned = None
        self._faults.at("before_ack")
        await self._ack(held)
        return True

    async def hand_over(self) -> None:
        """Release everything; what has work is woken for others."""
        for session, held in list(self._held.items()):
            if await self._leases.release(session, held.lease, "handover") == "handed over":
                await self._control.requests.wake(session)
            await self._ack(held)
        self._held.clear()

    async def _ack(self, held: Held) -> None:
        wakes, held.wakes = held.wakes, []
        await self._wakes.ack(wakes)

    def forget(self, session: str) -> None:
        """Stop owning a session: another worker may commit to it from now on."""
        self._held.pop(session, None)
        self._on_lost(session)
