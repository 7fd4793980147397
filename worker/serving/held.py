"""One session that a worker owns, under one lease: what it knows of it, and what it has begun.
Torch-free.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from service.control.leases import Owned
from service.control.news import News
from service.control.sessions import Session
from worker.serving.scheduler import Job, after

BEGUN = itertools.count(1)
MAX_AHEAD = 2  # jobs begun and not committed: one that is being committed, one ahead of it


@dataclass(eq=False)
class Held:
    """A session that this worker owns, under one lease."""

    session: str
    lease: str
    wakes: list[str]  # messages to acknowledge once a step is committed
    owned: Owned | None = None  # as it will be when all that is ahead is committed; None: unknown
    is_stale: bool = True  # there is news: read it again
    is_void: bool = False  # a job ended without a commit while this was being read
    has_moved: bool = False  # one was committed meanwhile
    known: Session | None = None  # the record as it was last seen, or left by a commit since
    asked: int = 0  # requests that were ever asked of it, as far as is heard
    ahead: list[Job] = field(default_factory=list)  # begun and not committed, oldest first
    begun: int = 0  # when the last job began, on a count of all jobs
    committing: asyncio.Task[frozenset[str]] | None = None  # with the youngest that was computed
    is_halted: bool = False  # something of what is ahead goes wrong: begin nothing before its end
    cancelled: str = ""  # a request that clients want to end: nothing more of it is published
    idle_since_s: float = field(default_factory=time.monotonic)
    committed_s: float | None = None  # when its last chunk was, while it is at work

    @property
    def may_have_work(self) -> bool:
        return self.is_stale or self.owned is None or bool(self.owned.entries)

    def may_begin(self, job: Job) -> bool:
        """Chunks may run one ahead of what is being committed; what moves the head waits for it."""
        if self.is_halted or any(begun.what in ("skip", "head") for begun in self.ahead):
            return False
        return len(self.ahead) < (MAX_AHEAD if job.what in ("chunk", "observe") else 1)

    def read(self, owned: Owned, ahead: Sequence[Job]) -> None:
        """This is how Redis knows it, which may know of these jobs or not yet."""
        if self.is_void:  # of these jobs, some will never be committed
            return
        known = self.known
        if self.has_moved and (known is None or owned.session.version < known.version):
            self.is_stale = True  # it was read before, and its tip is no longer the world's
            return
        self.known, self.owned = owned.session, _behind(owned, ahead)
        self.is_stale |= owned.asked < self.asked  # heard of while this was on its way
        self.asked = owned.asked

    def hear(self, news: News) -> None:
        """Go on from what is known, if this is all that is new; else read it again."""
        self.asked = max(self.asked, news.asked)
        owned, entry = self.owned, news.entry
        if owned is not None and news.asked <= owned.asked:
            return
        is_next = owned is not None and owned.is_whole and news.asked == owned.asked + 1
        if owned is None or entry is None or not is_next or self.known is None:
            self.is_stale = True
            return
        entries = [one for one in owned.entries if one.entry != news.replaced]
        session = owned.session if self.ahead else self.known
        self.owned = owned._replace(session=session, entries=[*entries, entry], asked=news.asked)

    def committed(self, known: Session | None) -> None:
        """A commit left this record; None: more has happened to it."""
        self.known, self.has_moved = known, True

    def begin(self, job: Job) -> None:
        """Count on this job to be committed."""
        assert self.owned is not None
        self.owned = after(self.owned, job)
        self.ahead.append(job)
        self.begun = next(BEGUN)

    def end(self, job: Job, tip: str | None) -> None:
        """A job is over and left this tip; None: not committed, what was counted on is void."""
        self.ahead.remove(job)
        self.is_halted &= bool(self.ahead)
        if tip is None:
            self.owned, self.is_stale, self.is_void = None, True, True
        elif self.owned is not None:
            self.owned = self.owned._replace(session=self._left(self.owned.session, tip))
            self.is_stale |= not (self.owned.entries or self.owned.is_whole)

    def _left(self, counted: Session, tip: str) -> Session:
        """The record with this tip: as commits left it, or else as it was counted on."""
        known = self.known
        if not self.ahead and known is not None and known.tip == tip:
            return known
        return counted.model_copy(update={"tip": tip})


def _behind(owned: Owned, ahead: Sequence[Job]) -> Owned:
    """The session once these jobs are committed, as far as they are not."""
    for job in (one.upto(1) for begun in ahead for one in (begun, *begun.more)):
        if owned.session.num_segments <= job.session.num_segments:
            owned = after(owned, job)
    return owned
