"""Requests appended and their owners told, for many sessions in one round trip.

The append itself pushes the request to the session's owner. What the sweeper has to know is
written behind it, in the same pipeline, for sessions that were appended to before: for others in a
second round trip, as always in a cluster, whose pipelines have no order. An owner who did not hear,
and all workers where there is none, are woken in that second round trip.
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
MOST_KNOWN = 100_000  # sessions that are remembered


class _Append(NamedTuple):
    session: str
    command: Command
    expires_s: float


class Appends:
    def __init__(self, redis: Redis, waker: Waker) -> None:
        self._redis, self._waker = Pipelined(redis), waker
        self._known: set[str] = set()  # sessions whose owners heard of a request
        self._batches: Batches[_Append] = Batches(self._send, keys.PACE_S)

    async def run(self, session: str, args: Sequence[Argument], expires_s: float) -> Any:
        """What append.lua answers; whoever should know of the request has been told."""
        of_session = (keys.record, keys.lease, keys.log, keys.requests, keys.order)
        names = [name(session) for name in of_session]
        args, is_noted = (*args, session, keys.inbox("")), False
        try:
            command = scripts.command(SCRIPT, names, args)
            answer, is_noted = await self._batches.do(_Append(session, command, expires_s))
        except NoScriptError:
            answer = await scripts.run(self._redis, SCRIPT, names, args)
        if answer[0] == b"ok":
            is_heard = bool(answer[3])
            self._note(session, is_heard)
            if not (is_heard and is_noted):
                await self._waker.wake(Call(session, answer[1].decode(), expires_s, is_heard))
        return answer

    async def _send(self, appends: Sequence[_Append]) -> Sequence[Any]:
        """(answer, whether the sweeper knows) of each, or its error."""
        known = [one.session in self._known for one in appends]
        pairs = zip(appends, known, strict=True)
        calls = [
            Call(one.session, "", one.expires_s, is_heard=True) for one, is_in in pairs if is_in
        ]
        commands = [one.command for one in appends]
        notes = self._waker.commands(calls) if calls else []
        answers = await self._redis.execute([*commands, *notes])
        if any(isinstance(one, Exception) for one in answers[len(appends) :]):
            known = [False] * len(appends)
        return [
            answer if isinstance(answer, Exception) else (answer, is_noted)
            for answer, is_noted in zip(answers, known, strict=False)
        ]

    def _note(self, session: str, is_heard: bool) -> None:
        if len(self._known) >= MOST_KNOWN:
            self._known.clear()
        if is_heard and not self._redis.in_cluster:
            self._known.add(session)
        else:
            self._known.discard(session)
