"""Requests appended and their owners told, for many sessions in one round trip.

The append itself pushes the request to the session's owner. What the sweeper has to know is
written behind it, in the same pipeline, for sessions that were appended to before: for others in a
second round trip, as always in a cluster, whose pipelines have no order. An owner who did not hear,
and all workers where there is none, are woken in that second round trip.

The sweeper looks at a session a lease after its last note, so a note need not be written again for
a part of that time: what is appended meanwhile is in the log when it looks. A session's expiry in
the index is as old, which the sweeper compares with the record.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from service.control import keys, scripts
from service.control.batches import Argument, Batches, Command, Pipelined
from service.control.wake import Call, Waker

SCRIPT = "append"
MOST_KNOWN = 100_000  # sessions that are remembered
NOTED_PART = 0.25  # of a lease


class _Append(NamedTuple):
    session: str
    command: Command
    expires_s: float


@lru_cache(4096)
def _names(session: str, by_guest: bool) -> Sequence[str]:
    order = keys.guests_order if by_guest else keys.order
    of_session = (keys.record, keys.lease, keys.log, keys.requests, order)
    return [name(session) for name in of_session]


class Appends:
    def __init__(self, redis: Redis, waker: Waker, lease_s: float) -> None:
        self._redis, self._waker = Pipelined(redis), waker
        self._noted_for_s = NOTED_PART * lease_s
        self._noted_s: dict[str, float] = {}  # sessions whose owners heard of a request: last note
        self._batches: Batches[_Append] = Batches(self._send, keys.PACE_S)

    async def run(
        self, session: str, args: Sequence[Argument], expires_s: float, by_guest: bool = False
    ) -> Any:
        """What append.lua answers; whoever should know of the request has been told."""
        names = _names(session, by_guest)
        args, is_noted, began_s = (*args, session, keys.inbox("")), False, time.monotonic()
        try:
            command = scripts.command(SCRIPT, names, args)
            answer, is_noted = await self._batches.do(_Append(session, command, expires_s))
        except NoScriptError:
            answer = await scripts.run(self._redis, SCRIPT, names, args)
        if answer[0] == b"ok":
            is_heard = bool(answer[3])
            if not (is_heard and is_noted):
                self._noted_s.pop(session, None)
                await self._waker.wake(Call(session, answer[1].decode(), expires_s, is_heard))
                self._note(session, is_heard, began_s)
        return answer

    async def _send(self, appends: Sequence[_Append]) -> Sequence[Any]:
        """(answer, whether the sweeper knows) of each, or its error."""
        now_s = time.monotonic()
        calls = self._due(appends, now_s)
        commands = [one.command for one in appends]
        notes = self._waker.notes(calls) if calls else []
        answers = await self._redis.execute([*commands, *notes])
        for error in answers[len(appends) :]:
            if isinstance(error, Exception):
                self._noted_s.clear()
        for call in calls:
            if call.session in self._noted_s:
                self._noted_s[call.session] = now_s
        return [
            answer if isinstance(answer, Exception) else (answer, one.session in self._noted_s)
            for answer, one in zip(answers, appends, strict=False)
        ]

    def _due(self, appends: Sequence[_Append], now_s: float) -> list[Call]:
        """Notes about the sessions that are known, but for those written lately."""
        old_s = now_s - self._noted_for_s
        return [
            Call(one.session, "", one.expires_s, is_heard=True)
            for one in appends
            if self._noted_s.get(one.session, now_s) < old_s
        ]

    def _note(self, session: str, is_heard: bool, now_s: float) -> None:
        if len(self._noted_s) >= MOST_KNOWN:
            self._noted_s.clear()
        if is_heard and not self._redis.in_cluster:
            self._noted_s[session] = now_s
