"""`mirage fsck`: is every World whole? What Redis says is compared with what lies in the store.

Found and told apart: worlds that miss a segment (nothing can bring it back), worlds that the store
has and Redis has not (rebuilt), worlds whose end is not certain (somebody has to choose, or to put
back what is missing in between: then they are opened), forks that their source does not know
(registered, else a collection could hurt them), objects that nothing refers to (collected). Without
`--repair` nothing is changed, nor in a store that has nothing of what this Redis names. Safe beside
a running service.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, field

from service.control import keys, scripts
from service.control.deletion import deleted_path
from service.control.heads import Head
from service.control.plane import ControlPlane
from service.errors import (
    InvalidRequest,
    SegmentError,
    SegmentMissing,
    SessionDeleted,
    UnknownSession,
)
from service.store.descent import Doubt, descend, extended
from service.store.objects import Listed
from service.store.rebuild import Report as Rebuilt
from service.store.segments import PARSE_ERRORS, segment_path


@dataclass
class Findings:
    """What is wrong; every list names sessions or objects."""

    num_sessions: int = 0
    num_segments: int = 0
    missing: dict[str, list[str]] = field(default_factory=dict)  # session -> segments
    corrupt: dict[str, list[str]] = field(default_factory=dict)
    inconsistent: dict[str, str] = field(default_factory=dict)  # session -> what
    unknown_to_redis: list[str] = field(default_factory=list)
    ambiguous: dict[str, list[str]] = field(default_factory=dict)  # session -> possible ends
    unreached: dict[str, list[str]] = field(default_factory=dict)  # behind a gap, or unreadable
    shut: list[str] = field(default_factory=list)  # once ambiguous, and certain by now
    lost: dict[str, str] = field(default_factory=dict)
    forks_not_registered: dict[str, list[str]] = field(default_factory=dict)  # home -> forks
    garbage: list[str] = field(default_factory=list)
    garbage_bytes: int = 0
    repaired: list[str] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        """Whether every World can be restored; garbage harms none."""
        harm = (self.missing, self.corrupt, self.inconsistent, self.ambiguous, self.lost)
        mendable = (self.unknown_to_redis, self.forks_not_registered, self.shut)
        return not any(harm) and not any(mendable)

    @property
    def misses_all(self) -> bool:
        """Whether no segment that Redis names is there: the store is empty, or another one."""
        return 0 < self.num_segments == sum(map(len, self.missing.values()))

    def document(self) -> dict[str, object]:
        return asdict(self) | {"is_whole": self.is_whole}


class Fsck:
    def __init__(self, control: ControlPlane, *, deep: bool = False) -> None:
        """`deep`: read every segment and compare its checksum, not only see that it is there."""
        self._control, self._deep = control, deep
        self._objects: dict[str, Listed] = {}
        self.findings = Findings()

    async def check(self) -> Findings:
        """Look at everything and change nothing. Raises StoreDown, ControlPlaneDown."""
        listed = await self._control.segments.objects.below("sessions")
        # a session is a folder: what else lies there is a file system's or a copy's
        self._objects = {one.path: one for one in listed if one.path.count("/") > 1}
        known = [name async for name in self._known()]
        for session in known:
            await self._session(session)
        for session in sorted({path.split("/")[1] for path in self._objects} - set(known)):
            await self._stray(session)
        return self.findings

    async def repair(self) -> Findings:
        """Check, then mend what can be mended without guessing: nothing in another Redis' store."""
        found, control = await self.check(), self._control
        if found.misses_all:
            return found
        for home, forks in found.forks_not_registered.items():
            await control.redis.zadd(keys.forks(home), dict.fromkeys(forks, time.time()))
            found.repaired.append(f"registered {len(forks)} forks of {home}")
        for session in found.shut:
            head = await control.heads.current(session)
            await self._open(head, (await descend(control.segments, head))[0])
            found.repaired.append(f"opened {session}")
        rebuilt = Rebuilt()
        for session in found.unknown_to_redis:
            await control.rebuild.session(session, rebuilt)
        found.repaired += [f"rebuilt {session}" for session in rebuilt.rebuilt]
        for session, doubt in rebuilt.ambiguous.items():
            self._doubt(session, doubt)
        found.lost |= rebuilt.lost
        found.unknown_to_redis.clear()
        found.forks_not_registered.clear()
        found.shut.clear()
        await self._sweep()
        return found

    async def choose(self, session: str, segment: str) -> None:
        """Let a World whose end is not certain end with this segment. What lies behind a gap is
        given up, as if by a rewind.

        Raises UnknownSession, InvalidRequest.
        """
        control = self._control
        head = await control.heads.current(session)
        end, doubt = await descend(control.segments, head)
        if doubt is None or segment not in doubt.tips:
            known = ", ".join(doubt.tips if doubt else []) or "none"
            raise InvalidRequest(f"{segment} can't end {session}; these do: {known}")
        after = next((extended(end, one) for one in doubt.ways if one.id == segment), end)
        if doubt.unreached:
            branch = {"branch": doubt.branch + 1, "branch_first_frame": after.next_frame}
            after = after.model_copy(update=branch)
        await self._open(head, after)

    async def _open(self, shut: Head, after: Head) -> None:
        """Let a World that was shut go on from this head, which descends from where it stood."""
        pairs = [part for pair in after.record().items() for part in pair]
        added = after.lines(len(shut.manifest))
        await scripts.run(
            self._control.redis,
            "choose",
            [keys.record(shut.session), keys.manifest(shut.session)],
            [shut.tip, len(pairs), *pairs, *added],
        )
        await self._control.sessions.touch(shut.session)  # it may have waited past its expiry
        await self._control.heads.write(await self._control.heads.current(shut.session))

    async def _known(self) -> AsyncIterator[str]:
        async for name, _ in self._control.redis.zscan_iter(keys.EXPIRY):
            yield name.decode()

    async def _session(self, session: str) -> None:
        """One session that Redis has."""
        try:
            await self._look(session)
        except (UnknownSession, SessionDeleted):
            return  # being made, or on its way out
        except PARSE_ERRORS as error:
            self.findings.inconsistent[session] = f"it can't be read: {error}"

    async def _look(self, session: str) -> None:
        head = await self._control.heads.current(session)
        record = await self._control.sessions.get(session)
        self.findings.num_sessions += 1
        self.findings.num_segments += len(head.manifest)
        if record.tip != head.tip or record.num_segments != len(head.manifest):
            seen = f"{record.num_segments} segments up to {record.tip!r}"
            expected = f"{len(head.manifest)} up to {head.tip!r}"
            self.findings.inconsistent[session] = f"record: {seen}; manifest: {expected}"
        if record.error and str(record.error["type"]).endswith("ambiguous-world"):
            _, doubt = await descend(self._control.segments, head)
            if doubt:
                self._doubt(session, doubt)
            else:
                self.findings.shut.append(session)
        await self._segments(head)
        await self._forks(head)
        for one in await self._control.collection.garbage(session):
            self._garbage(one)

    def _doubt(self, session: str, doubt: Doubt) -> None:
        self.findings.ambiguous[session] = doubt.tips
        if doubt.unreached:
            self.findings.unreached[session] = doubt.unreached

    async def _segments(self, head: Head) -> None:
        for entry in head.manifest:
            home = entry.home or head.session
            if segment_path(home, entry.id) not in self._objects:
                self.findings.missing.setdefault(head.session, []).append(entry.id)
            elif self._deep:
                try:
                    await self._control.segments.get(home, entry.id)
                except SegmentMissing:
                    self.findings.missing.setdefault(head.session, []).append(entry.id)
                except SegmentError:
                    self.findings.corrupt.setdefault(head.session, []).append(entry.id)

    async def _forks(self, head: Head) -> None:
        """Whether each session whose segments this one uses knows of it, or of one in between."""
        for home in await self._control.heads.homes(head):
            if head.session not in (await self._control.collection.forks(home)).users:
                self.findings.forks_not_registered.setdefault(home, []).append(head.session)

    async def _stray(self, session: str) -> None:
        """One session that only the store has."""
        redis = self._control.redis
        listed = [one for path, one in self._objects.items() if path.split("/")[1] == session]
        buried = await redis.zscore(keys.GRAVES, session) is not None
        if buried or await redis.exists(keys.record(session)):
            return  # a deleted one whose turn will come
        if deleted_path(session) in self._objects:
            for one in listed:
                self._garbage(one)
        elif any("/heads/" in one.path for one in listed):
            self.findings.unknown_to_redis.append(session)
        else:
            self.findings.lost[session] = "no head object lies in the store"

    def _garbage(self, one: Listed) -> None:
        self.findings.garbage.append(one.path)
        self.findings.garbage_bytes += one.num_bytes

    async def _sweep(self) -> None:
        """Collect at once what was garbage for the grace period, and bury what was deleted."""
        control = self._control
        for session in {path.split("/")[1] for path in self.findings.garbage}:
            if deleted_path(session) in self._objects:
                removed = await control.collection.bury(session)
            else:
                removed = await control.collection.collect(session)
            self.findings.repaired.append(f"removed {removed} objects of {session}")
