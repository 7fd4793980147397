"""Requests appended and their owners told, for many sessions in one round trip.

Who owned a session a moment ago mostly still does, so that worker's inbox is written behind the
append, in the same pipeline. Where the append's answer names another owner, or none, the right one
is told in a second round trip, as always in a cluster, whose pipelines have no order. Trade-off: a
worker may be told of a session that it has lost; it looks and finds nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from service import keys, scripts
from service.batches import Argument, Batches, Command, Pipelined
from service.wake import Call, Waker

SCRIPT = "append"
MOST_KNOWN = 100_000  # sessions whose owners are remembered


class _Append(NamedTuple):
    session: str
    command: Command
    expires_s: float


class Appends:
    def __init__(self, redis: Redis, waker: Waker) -> None:
        self._redis, self._waker = Pipelined(redis), waker
        self._leases: dict[str, str] = {}  # session -> its owner's lease as last heard
        self._batches: Batches[_Append] = Batches(self._send, keys.PACE_S)

    async def run(self, session: str, args: Sequence[Argument], expires_s: float) -> Any:
        """What append.lua answers; whoever should know of the request has been told."""
        of_session = (keys.record, keys.lease, keys.log, keys.requests, keys.order)
        names = [name(session) for name in of_session]
        told = None
        try:
            command = scripts.command(SCRIPT, names, args)
            answer, told = await self._batches.do(_Append(session, command, expires_s))
        except NoScriptError:
            answer = await scripts.run(self._redis, SCRIPT, names, args)
        if answer[0] == b"ok":
            lease = answer[1].decode()
            self._note(session, lease)
            if lease != told:
                await self._waker.wake(Call(session, lease, expires_s))
        return answer

    async def _send(self, appends: Sequence[_Append]) -> Sequence[Any]:
        """(answer, the lease that was told) of each, or its error."""
        known = [self._leases.get(one.session) for one in appends]
        pairs = zip(appends, known, strict=True)
        calls = [Call(one.session, lease, one.expires_s) for one, lease in pairs if lease]
        commands = [one.command for one in appends]
        told = self._waker.commands(calls) if calls else []
        answers = await self._redis.execute([*commands, *told])
        if any(isinstance(one, Exception) for one in answers[len(appends) :]):
            known = [None] * len(appends)
        return [
            answer if isinstance(answer, Exception) else (answer, lease)
            for answer, lease in zip(answers, known, strict=False)
        ]

    def _note(self, session: str, lease: str) -> None:
        if len(self._leases) >= MOST_KNOWN:
            self._leases.clear()
        if lease and not self._redis.in_cluster:
            self._leases[session] = lease
        else:
            self._leases.pop(session, None)
