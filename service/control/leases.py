"""Fenced leases, and the commit of a step. What else an owner changes is fenced as well
(service/control/lineage.py).

A lease is a string, `<worker id>.<counter>`, that no other acquisition ever repeats (the worker id
is random per process), held under an expiry by Redis' own clock. It is compared for equality inside
each script, so a paused owner that returns writes nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, NamedTuple, TypeVar

from redis.asyncio import Redis

from service.control import keys, scripts
from service.control.batches import Argument, Pipelined
from service.control.frames import Frame, ManifestEntry, event_id
from service.control.requests import REQUEST, Entry, Progress, Request
from service.control.sessions import Session, SessionState, parse_record, states_before
from service.errors import LeaseLost

OF_LOAD = (keys.record, keys.log, keys.requests, keys.cancels)
OF_COMMIT = (
    keys.record, keys.lease, keys.log, keys.manifest, keys.frames, keys.requests, keys.cancels,
)  # fmt: skip
T = TypeVar("T")
LOG_AHEAD = 8  # requests that an owner looks ahead; it does one at a time


class Owned(NamedTuple):
    """A session as its owner found it: the record and what the log holds after the cursor."""

    session: Session
    cursor: str
    cursor_done: int  # poses done of the first entry after the cursor
    entries: list[Entry]
    progress: dict[str, Progress]  # of those entries, by request id
    asked: int = 0  # requests that were ever asked of it, up to the last of these
    is_whole: bool = True  # these entries are all that wait


@dataclass(frozen=True)
class Commit:
    """What one step changes."""

    tip: str  # the manifest's tip when the step began
    cursor: str
    cursor_done: int
    request_id: str
    progress: Progress | None = None  # None: a live pose, of which none is kept
    segment: ManifestEntry | None = None
    frames: Sequence[Frame] = ()
    record: dict[str, str | int | float] = field(default_factory=dict)


@dataclass(frozen=True)
class Committed:
    version: int
    cancel_requested: bool  # a client wants this request to end


def following(session: Session, change: Commit, version: int) -> Session | None:
    """The record once a step made it `version`; None if more has happened to it than that."""
    if version != session.version + 1 or change.segment is None:
        return None
    counts = {"version": version, "num_segments": session.num_segments + 1}
    update = change.record | counts | {"tip": change.segment.id, "error": None}
    return session.model_copy(update=update)


class Leases:
    """The sessions of one worker process."""

    def __init__(self, redis: Redis, worker_id: str, lease_s: float, frames_kept: int) -> None:
        assert "." not in worker_id
        self._redis = Pipelined(redis)
        self.worker_id = worker_id
        self._lease_ms, self._frames_kept = int(1000 * lease_s), frames_kept
        self._counter = itertools.count(1)

    async def acquire(self, session: str) -> str | None:
        """A new lease, or None if another worker holds one or the session takes no work."""
        lease = f"{self.worker_id}.{next(self._counter)}"
        before = sorted(states_before(SessionState.ACTIVE) | {SessionState.ACTIVE})
        answer = await scripts.run(
            self._redis,
            "acquire",
            [keys.record(session), keys.lease(session)],
            [lease, self._lease_ms, f",{','.join(before)},"],
        )
        return lease if answer[0] == b"ok" else None

    async def renew(self, leases: dict[str, str]) -> set[str]:
        """Renew all (session -> lease); the sessions that are lost."""
        calls: list[scripts.Call] = [
            ([keys.lease(session)], [lease, self._lease_ms]) for session, lease in leases.items()
        ]
        answers = await scripts.run_all(self._redis, "renew", calls)
        for answer in answers:
            _or_raise(answer)
        return {session for session, held in zip(leases, answers, strict=True) if not held}

    async def is_gone(self, session: str) -> bool:
        """Whether a session was deleted, and its lease with it."""
        state = await self._redis.execute_command("HGET", keys.record(session), "state")
        return state in (None, b"deleted")

    async def release(
        self, session: str, lease: str, how: Literal["idle", "handover"] = "idle"
    ) -> str:
        """ok, handed over, lost, or (only when idle) ahead: there is work, the lease stays."""
        names = (keys.record, keys.lease, keys.log)
        answer = await scripts.run(
            self._redis, "release", [name(session) for name in names], [lease, how]
        )
        return str(answer.decode())

    async def load(self, session: str, known: Session | None = None) -> Owned:
        """Everything the owner needs to go on; raises LeaseLost if the session is gone.

        `known`: the record as it was; it is not read again while it is at the same version.
        """
        (found,) = await self.load_all([(session, known)])
        return _or_raise(found)

    async def load_all(
        self, sessions: Sequence[tuple[str, Session | None]]
    ) -> list[Owned | Exception]:
        """What `load` returns or raises for each (session, known), in one round trip; ValueError
        for what can't be read here, as what a newer gateway wrote may be.
        """
        calls = [
            (
                [name(session) for name in OF_LOAD],
                [LOG_AHEAD, "" if known is None else known.version],
            )
            for session, known in sessions
        ]
        answers = await scripts.run_all(self._redis, "load", calls)
        return [_found(*one, answer) for one, answer in zip(sessions, answers, strict=True)]

    async def commit(self, session: str, lease: str, commit: Commit) -> Committed:
        """Publish a step; raises LeaseLost with the reason if it is refused: drop the World,
        restore it if needed.
        """
        (done,) = await self.commit_all([(session, lease, commit)])
        return _or_raise(done)

    async def commit_all(
        self, changes: Sequence[tuple[str, str, Commit]]
    ) -> list[Committed | Exception]:
        """What `commit` returns or raises for each (session, lease, commit), in one round trip:
        each is atomic, all together are not.
        """
        calls = [
            (
                [name(session) for name in OF_COMMIT],
                [lease, *_arguments(change, self._frames_kept)],
            )
            for session, lease, change in changes
        ]
        answers = await scripts.run_all(self._redis, "commit", calls)
        return [_verdict(*one, answer) for one, answer in zip(changes, answers, strict=True)]


def _or_raise(answer: T | Exception) -> T:
    if isinstance(answer, Exception):
        raise answer
    return answer


def _found(session: str, known: Session | None, answer: Any) -> Owned | Exception:
    if isinstance(answer, Exception):
        return answer
    if not answer:
        return LeaseLost(f"session {session!r} is gone")
    try:
        return _owned(known, answer)
    except ValueError as error:
        return error


def _owned(known: Session | None, answer: Any) -> Owned:
    asked, is_whole, record, cursor, done, log, kept, cancels = answer
    entries = [_entry(name, _pairs(fields)) for name, fields in log]
    progress = {
        entry.id: Progress.model_validate_json(value).model_copy(
            update={"cancel_requested": bool(cancel)}
        )
        for entry, value, cancel in zip(entries, kept, cancels, strict=True)
        if value is not None
    }
    if known is None or record:
        known = parse_record(_pairs(record))
    position = (cursor.decode(), int(done))
    return Owned(known, *position, entries, progress, asked, bool(is_whole))


def _verdict(session: str, lease: str, commit: Commit, answer: Any) -> Committed | Exception:
    if isinstance(answer, Exception):
        return answer
    if answer[0] == b"ok":
        return Committed(int(answer[1]), bool(answer[2]))
    reason = {
        b"deleted": "the session was deleted",
        b"lease": f"lease {lease} is no longer held",
        b"tip": f"the manifest's tip is no longer {commit.tip!r}",
    }[answer[0]]
    return LeaseLost(f"commit to session {session!r} refused: {reason}")


def _pairs(flat: list[bytes]) -> dict[bytes, bytes]:
    """A hash or an entry's fields as a script returns them: name, value, name, value ..."""
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _entry(name: bytes, fields: dict[bytes, bytes]) -> Entry:
    return Entry(name.decode(), fields[b"id"].decode(), _message(fields[b"body"]))


@lru_cache(maxsize=32)
def _message(body: bytes) -> Request:
    """Parsed once, not once per chunk: a long path is a few hundred kilobytes."""
    return REQUEST.validate_json(body)


def _arguments(commit: Commit, frames_kept: int) -> list[Argument]:
    segment, progress = commit.segment, commit.progress
    final = progress is not None and progress.state.is_final
    kept = "" if progress is None else progress.model_dump_json(exclude={"cancel_requested"})
    record = [part for pair in commit.record.items() for part in pair]
    head: list[Argument] = [
        commit.tip,
        "" if segment is None else segment.id,
        "" if segment is None else segment.model_dump_json(),
        commit.cursor,
        commit.cursor_done,
        frames_kept,
        commit.request_id,
        kept,
        int(final),
        len(record),
        *record,
    ]
    for frame in commit.frames:
        head += [event_id(frame.branch, frame.frame), frame.text, frame.image]
    return head
