"""The owner's side of fork, rewind and snapshot: requests that move or name the head of a World.

The session's owner executes them in the order of the log, so they never race with a step. Each is
done in steps that may be repeated: what is in Redis changes by fenced scripts, then a head object
is written to the store, and only then does the caller commit the request as done. No segment is
copied: a fork's manifest names the sessions under which its segments lie.
"""

from __future__ import annotations

import time
from typing import Any

from redis.asyncio import Redis

from service.control import keys, scripts
from service.control.batches import Argument
from service.control.heads import Head, Heads, Name
from service.control.leases import Commit
from service.control.requests import Entry, Fork, Progress, RequestState, Rewind, Snapshot
from service.control.sessions import Session, Sessions
from service.errors import Conflict, InvalidRequest, LeaseLost, UnknownSession

REFUSALS = {
    "deleted": "the session was deleted",
    "lease": "its lease is no longer held",
    "tip": "the manifest's tip has changed",
}


class Lineage:
    def __init__(self, redis: Redis, sessions: Sessions, heads: Heads) -> None:
        self._redis, self._sessions, self._heads = redis, sessions, heads

    async def execute(
        self, session: Session, entry: Entry, progress: Progress | None, lease: str
    ) -> Commit:
        """Do what the request asks; the commit that acknowledges it. May be repeated after a crash.

        Raises LeaseLost, StoreDown, and any other MirageError if the request can't be done.
        """
        head = await self._current(session)
        match entry.message:
            case Fork() as fork:
                result = await self._fork(head, fork, lease)
            case Rewind() as rewind:
                head = await self._rewind(head, session, rewind, entry.id, lease)
                await self._heads.write(head)
                result = {"branch": head.branch, "num_frames": head.next_frame}
            case Snapshot() as snapshot:
                result = await self._snapshot(head, snapshot, lease)
            case other:
                raise InvalidRequest(f"a request of kind {other.kind!r} moves no head")
        if progress is not None:
            progress = progress.model_copy(update={"state": RequestState.DONE, "result": result})
        return Commit(head.tip, entry.entry, 0, entry.id, progress)

    async def _current(self, session: Session) -> Head:
        try:
            head = await self._heads.current(session.id)
        except UnknownSession as error:
            raise LeaseLost(error.detail) from error
        if head.tip != session.tip:
            raise LeaseLost(f"session {session.id!r} has moved on from tip {session.tip!r}")
        if not head.manifest:
            raise Conflict(f"session {session.id!r} has no frame yet")
        return head

    async def _at(self, head: Head, frame: int | None, snapshot: str | None) -> Head:
        if snapshot is not None:
            return await self._heads.named(head, snapshot)
        return head if frame is None else head.upto_frame(frame)

    async def _fork(self, head: Head, fork: Fork, lease: str) -> dict[str, Any]:
        """Another session whose manifest begins with this one's."""
        start = await self._at(head, fork.frame, fork.snapshot)
        await self._fenced("register_fork", head, "forks", [lease, fork.target, time.time()])
        spec = {"owner": fork.owner, "origin": f"fork:{head.session}"}
        if fork.seed is not None:
            spec["seed"] = fork.seed  # type: ignore[assignment]
        branch = Head(
            session=fork.target,
            version=1,
            spec=head.spec.model_copy(update=spec),
            branch=head.branch + 1,
            branch_first_frame=start.next_frame,
            weights=head.weights,
            num_points=start.num_points,
            world_bytes=start.world_bytes,
            manifest=[
                one if one.home else one.model_copy(update={"home": head.session})
                for one in start.manifest
            ],
            init_request=head.init_request,
            created_s=time.time(),
        )
        await self._sessions.reserve(fork.target, fork.owner, fork.max_sessions)
        await self._heads.write(branch)
        await self._sessions.adopt(branch)
        return {"session": fork.target, "num_frames": branch.next_frame}

    async def _rewind(
        self, head: Head, session: Session, rewind: Rewind, request_id: str, lease: str
    ) -> Head:
        """Move the head back; if that was done already, before a crash, leave it."""
        if session.moved_by == request_id:
            return head
        back = await self._at(head, rewind.frame, rewind.snapshot)
        branch, kept = head.branch + 1, _common(head, back)
        first = head.manifest[kept - 1].next_frame if kept else 0  # a snapshot may lie off the line
        back = back.model_copy(
            update={"branch": branch, "branch_first_frame": first, "names": head.names}
        )
        added = back.lines(kept)
        fields = {**back.record(), "error": ""}
        pairs = [part for pair in fields.items() for part in pair]
        arguments = [lease, head.tip, kept, request_id, len(pairs), *pairs, *added]
        await self._fenced("rewind", head, "manifest", arguments)
        collect_s = time.time() + keys.COLLECT_SOON_S
        await self._redis.zadd(keys.COLLECT, {head.session: collect_s})
        return back.model_copy(update={"version": head.version + 1})

    async def _snapshot(self, head: Head, snapshot: Snapshot, lease: str) -> dict[str, Any]:
        """Name the head, and write both the named and the newest head to the store."""
        known = head.names.get(snapshot.name)
        if known is None and len(head.names) >= keys.MAX_SNAPSHOTS:
            raise Conflict(
                f"session {head.session!r} has {keys.MAX_SNAPSHOTS} snapshots; forget one first"
            )
        if known is not None and known.tip != head.tip and not snapshot.replace:
            raise Conflict(
                f"snapshot {snapshot.name!r} names frame {known.num_frames - 1} of branch "
                f"{known.branch}; choose another name, or say `replace`"
            )
        name = Name(
            name=snapshot.name,
            tip=head.tip,
            branch=head.branch,
            num_segments=len(head.manifest),
            num_frames=head.next_frame,
            head=await self._heads.put_snapshot(head),
            created_s=time.time(),
        )
        await self._fenced("name", head, "names", [lease, name.name, name.model_dump_json()])
        names = {**head.names, name.name: name}
        after = {"version": head.version + 1, "names": names}
        await self._heads.write(head.model_copy(update=after))
        return {"name": name.name, "num_frames": name.num_frames}

    async def _fenced(self, script: str, head: Head, third: str, arguments: list[Argument]) -> None:
        """Run a script on record, lease and a third key of the session; raises LeaseLost."""
        session = head.session
        names = [keys.record(session), keys.lease(session), getattr(keys, third)(session)]
        answer = (await scripts.run(self._redis, script, names, arguments)).decode()
        if answer != "ok":
            raise LeaseLost(f"{script} of session {session!r} refused: {REFUSALS[answer]}")


def _common(one: Head, other: Head) -> int:
    """How many segments two manifests share from the beginning on."""
    pairs = zip(one.manifest, other.manifest, strict=False)
    return next(
        (at for at, (left, right) in enumerate(pairs) if left.id != right.id),
        min(len(one.manifest), len(other.manifest)),
    )
