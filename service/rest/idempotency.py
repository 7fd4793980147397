"""Idempotency-Key: the same POST sent twice is done once and answered twice.

How: the key is claimed in Redis before the work, with a fingerprint of what was asked, and the
claim is renewed as long as the work takes; the answer takes its place. The same key with another
request is refused, and so is a second one while the first still runs. A request that was refused is
forgotten, so that a retry tries again.

One that ended in any other way (its process died, Redis or the store was out of reach, the caller
gave up) may have had its effect all the same. What the ids of all that it makes are derived from
stays with the key, so the next try finds what is there, or does it again under the same ids.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Header, Response
from pydantic import BaseModel
from redis.exceptions import RedisError

from service.auth.principal import Principal
from service.control import keys, scripts
from service.control.requests import Progress
from service.control.sessions import Session, new_session_id
from service.errors import (
    Conflict,
    FieldProblem,
    InvalidRequest,
    MirageError,
    SessionDeleted,
    UnknownSession,
    problem_of,
)
from service.gateway import Gateway
from service.tasks import end

KEPT_S = 86_400
CLAIMED_S = 20  # renewed by a process that works; one that dies frees the key after this
UNSETTLED_S = keys.TOMBSTONE_S  # a seed that lasts longer could name a session deleted long ago
ALLOWED = re.compile(r"[\x21-\x7e]{1,128}")

IdempotencyKey = Annotated[
    str | None, Header(description="any 1 to 128 visible characters; a retry sends the same")
]


def fingerprint(*parts: object) -> str:
    """Of everything that makes two requests the same one."""
    text = json.dumps([str(part) for part in parts])
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass
class Attempt:
    """One try at a request, and the ids of what it makes."""

    gateway: Gateway
    owner: str
    key: str = ""  # "" = there is none, and there will be no other try
    asked: str = ""
    seed: str = field(default_factory=new_session_id)  # that of the session, others follow from it
    claim: str = field(default_factory=lambda: secrets.token_hex(8))
    is_first: bool = True

    @property
    def request_id(self) -> str:
        return f"r_{fingerprint(self.seed)[:20]}"

    async def session_before(self) -> Session | None:
        """The session that an earlier try has made. If there is none, none will ever be under its
        id: the sweeper may have given that up already.
        """
        if self.is_first:
            return None
        if (made := await self.made()) is None:
            await self.gateway.control.sessions.abandon(self.seed, self.owner)
            await self.start_over()
        return made

    async def made(self) -> Session | None:
        """The session that stands under the id of this try and those before it."""
        try:
            return await self.gateway.control.sessions.get(self.seed)
        except (UnknownSession, SessionDeleted):
            return None

    async def request_before(self, session: str) -> Progress | None:
        """What an earlier try has asked of this session."""
        if self.is_first:
            return None
        return await self.gateway.control.requests.find(session, self.request_id)

    async def start_over(self) -> None:
        """Nothing of the earlier tries is left: what is made from here on has other ids."""
        self.seed = new_session_id()
        await self.settle(self.unsettled(), UNSETTLED_S)
        if await self.begin():
            raise _still_runs()

    async def begin(self) -> str:
        """Claim the key; what stands there if that can't be, else ""."""
        seed, stored = await self._hold(self.seed)
        self.seed, self.is_first = seed or self.seed, seed == self.seed
        return "" if seed else stored

    async def keep(self) -> None:
        """Hold the key until cancelled; a Redis that is out of reach is waited out."""
        while True:
            await asyncio.sleep(CLAIMED_S / 4)
            with suppress(RedisError, OSError):
                await self._hold("")

    async def settle(self, stored: str, kept_s: int) -> None:
        """Put this in the claim's place, unless it is another's by now; "" = forget the key."""
        await self._run("settle", self.claim, stored, kept_s)

    async def _hold(self, seed: str) -> tuple[str, str]:
        held_ms = 1000 * CLAIMED_S
        found = await self._run("hold_key", self.asked, self.claim, seed, held_ms, UNSETTLED_S)
        return found[0].decode(), found[1].decode()

    async def _run(self, script: str, *arguments: str | int) -> Any:
        names = [keys.idempotency(self.owner, self.key)]
        return await scripts.run(self.gateway.control.redis, script, names, arguments)

    def unsettled(self) -> str:
        """What stands there until somebody tries again."""
        return json.dumps({"asked": self.asked, "seed": self.seed, "until_ms": 0})


async def once(
    gateway: Gateway,
    principal: Principal,
    key: str | None,
    asked: str,
    status: int | Callable[[BaseModel], int],
    work: Callable[[Attempt], Awaitable[tuple[BaseModel, dict[str, str]]]],
) -> Response:
    """Run `work` -> (answer, headers) unless `key` was used for the same request before."""
    if key is None:
        answer, headers = await work(Attempt(gateway, principal.owner))
        return _response(_status(status, answer), answer.model_dump(mode="json"), headers)
    if not ALLOWED.fullmatch(key):
        problem = FieldProblem("Idempotency-Key", key[:60], "1 to 128 visible ASCII characters")
        raise InvalidRequest("The Idempotency-Key can't be used.", fields=(problem,))
    attempt = Attempt(gateway, principal.owner, key, asked)
    if stored := await attempt.begin():
        return _replay(key, asked, json.loads(stored))
    keeping = asyncio.create_task(attempt.keep())
    settled: str | None = None
    try:
        answer, headers = await work(attempt)
        body, code = answer.model_dump(mode="json"), _status(status, answer)
        settled = json.dumps({"asked": asked, "status": code, "headers": headers, "body": body})
    except MirageError as error:
        settled = "" if problem_of(error).status < 500 else None  # below: it was refused
        raise
    finally:
        await end([keeping])
        if settled is None:
            await attempt.settle(attempt.unsettled(), UNSETTLED_S)
        else:
            await attempt.settle(settled, KEPT_S)
    return _response(code, body, headers)


def _replay(key: str, asked: str, known: dict[str, Any]) -> Response:
    if known["asked"] != asked:
        seen = FieldProblem("Idempotency-Key", key, "a new key for a different request")
        raise InvalidRequest("This Idempotency-Key was used for another request.", fields=(seen,))
    if "body" not in known:
        raise _still_runs()
    headers = known["headers"] | {"Idempotent-Replayed": "true"}
    return _response(known["status"], known["body"], headers)


def _still_runs() -> Conflict:
    return Conflict("The first request with this Idempotency-Key still runs.", retry_after_s=1)


def _status(status: int | Callable[[BaseModel], int], answer: BaseModel) -> int:
    return status if isinstance(status, int) else status(answer)


def _response(status: int, body: dict[str, Any], headers: dict[str, str]) -> Response:
    return Response(json.dumps(body), status, headers, media_type="application/json")
