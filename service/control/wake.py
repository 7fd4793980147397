"""The wake queue: session ids that need an owner, one stream with one consumer group.

A session stands in it once, however often it is woken: its length is how many wait, by which
workers are added. Pulling is load balancing. A message is acknowledged once its session's first
step is committed, so a puller's death leaves it to be claimed by another. Waking is a hint: whoever
pulls still has to win the lease, and a wake that is lost is repaired by the sweeper.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from service.control import keys, scripts
from service.control.batches import Argument, Batches, Command, Pipelined

QUEUE = (keys.WAKE, keys.WOKEN)


class Wake(NamedTuple):
    message: str  # stream id, to acknowledge
    session: str


class Call(NamedTuple):
    """That a session has work."""

    session: str
    lease: str = ""  # its owner's; "" = nobody owns it
    expires_s: float | None = None  # its new expiry, if that has moved
    is_heard: bool = False  # the owner was told by the request itself


class Waker:
    """Tells workers that there is work; what many tasks have to tell goes in one round trip."""

    def __init__(self, redis: Redis, lease_s: float) -> None:
        self._redis = Pipelined(redis)
        self._lease_s = lease_s
        self._batches: Batches[Call] = Batches(self._send)

    async def wake(self, call: Call) -> None:
        """Tell the owner, or all workers. Idempotent; the sweeper repairs what is lost."""
        await self._batches.do(call)

    async def _send(self, calls: Sequence[Call]) -> Sequence[None]:
        unowned = dict.fromkeys(one.session for one in calls if not one.lease and not one.is_heard)
        wakes: list[scripts.Call] = [
            (QUEUE, [session, keys.WAKE_GROUP, keys.WAKE_LENGTH]) for session in unowned
        ]
        answers = list(await self._redis.execute(self.notes(calls)))
        for answer in answers + await scripts.run_all(self._redis, "wake", wakes):
            if isinstance(answer, Exception):
                raise answer
        return [None] * len(calls)

    def notes(self, calls: Sequence[Call]) -> list[Command]:
        """What tells the sweeper, and owners that did not hear; not for a cluster, where keys of
        many sessions lie apart.
        """
        due_s, busy, expiry = time.time() + self._lease_s, list[Argument](), list[Argument]()
        inboxes: dict[str, set[str]] = {}
        commands: list[Command] = []
        for one in calls:
            busy += (due_s, one.session)
            if one.expires_s is not None:
                expiry += (one.expires_s, one.session)
            if one.lease and not one.is_heard:
                inboxes.setdefault(one.lease.rpartition(".")[0], set()).add(one.session)
        for worker, sessions in inboxes.items():
            inbox, most = keys.inbox(worker), ("MAXLEN", "~", keys.INBOX_LENGTH)
            commands.append(("XADD", inbox, *most, "*", "sessions", " ".join(sessions)))
            commands.append(("EXPIRE", inbox, keys.INBOX_S))
        if expiry:
            commands.append(("ZADD", keys.EXPIRY, "XX", *expiry))
        return [("ZADD", keys.BUSY, *busy), *commands]


class WakeQueue:
    """One worker's view of the queue and of its own inbox."""

    def __init__(self, redis: Redis, worker_id: str, lease_s: float) -> None:
        self._redis: Any = redis  # redis-py's types mix its sync and async answers
        self._news = Pipelined(redis)  # asked again after each answer
        self._worker_id = worker_id
        self._claim_ms = int(1000 * lease_s)
        self._inbox_at = "0-0"

    async def open(self) -> None:
        """Create the group, if nobody has."""
        try:
            await self._redis.xgroup_create(keys.WAKE, keys.WAKE_GROUP, id="0", mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise

    async def pull(self, count: int, wait_s: float) -> list[Wake]:
        """Sessions that need an owner; blocks up to `wait_s`."""
        try:
            answer = await self._redis.xreadgroup(
                keys.WAKE_GROUP,
                self._worker_id,
                {keys.WAKE: ">"},
                count=count,
                block=max(1, int(1000 * wait_s)),
            )
        except ResponseError as error:
            if "NOGROUP" not in str(error):
                raise
            await self.open()  # Redis lost its data
            return []
        return _wakes(answer)

    async def claim(self, count: int) -> list[Wake]:
        """Messages that another worker pulled a lease ago and did not acknowledge."""
        answer = await self._redis.xautoclaim(
            keys.WAKE, keys.WAKE_GROUP, self._worker_id, self._claim_ms, count=count
        )
        return [Wake(name.decode(), fields[b"session"].decode()) for name, fields in answer[1]]

    async def waiting(self) -> tuple[int, float]:
        """Messages in the queue, and the seconds since the oldest was sent."""
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.xlen(keys.WAKE)
            pipe.xrange(keys.WAKE, count=1)
            count, oldest = await pipe.execute()
        sent_ms = int(oldest[0][0].partition(b"-")[0]) if oldest else None
        return count, 0.0 if sent_ms is None else max(0.0, time.time() - sent_ms / 1e3)

    async def ack(self, messages: list[str]) -> None:
        if messages:
            await scripts.run(self._redis, "ack", QUEUE, [keys.WAKE_GROUP, *messages])

    async def listen(self, wait_s: float) -> set[str]:
        """Sessions that this worker owns and that have news; blocks up to `wait_s`."""
        block_ms, inbox = max(1, int(1000 * wait_s)), keys.inbox(self._worker_id)
        where = ("COUNT", keys.INBOX_LENGTH, "BLOCK", block_ms, "STREAMS", inbox, self._inbox_at)
        (answer,) = await self._news.execute([("XREAD", *where)])
        if isinstance(answer, Exception):
            raise answer
        entries = _entries(answer)
        if entries:
            self._inbox_at = entries[-1][0].decode()
        return {name for _, fields in entries for name in fields[b"sessions"].decode().split()}


def _wakes(answer: Any) -> list[Wake]:
    return [Wake(name.decode(), fields[b"session"].decode()) for name, fields in _entries(answer)]


def _entries(answer: Any) -> list[tuple[bytes, dict[bytes, bytes]]]:
    """Both shapes in which redis-py returns streams: a list of pairs, or a dictionary (RESP3)."""
    streams = answer.values() if isinstance(answer, dict) else [one[1] for one in answer or []]
    found = []
    for stream in streams:
        batches = stream if stream and isinstance(stream[0], list) else [stream]
        found += [entry for batch in batches for entry in batch]
    return found
