"""Idempotency-Key: the same POST sent twice is done once and answered twice.

How: the key is claimed in Redis before the work, with a fingerprint of what was asked, and the
claim is renewed as long as the work takes; the answer takes its place. The same key with another
request is refused, and so is a second one while the first still runs. A request that failed is
forgotten, so that a retry tries again.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Annotated, Any

from fastapi import Header, Response
from pydantic import BaseModel
from redis.asyncio import Redis
from redis.exceptions import RedisError

from service.auth.principal import Principal
from service.control import keys, scripts
from service.errors import Conflict, FieldProblem, InvalidRequest
from service.gateway import Gateway
from service.tasks import end

KEPT_S = 86_400
CLAIMED_S = 120  # renewed by a process that works; one that dies frees the key after this
ALLOWED = re.compile(r"[\x21-\x7e]{1,128}")

IdempotencyKey = Annotated[
    str | None, Header(description="any 1 to 128 visible characters; a retry sends the same")
]


def fingerprint(*parts: object) -> str:
    """Of everything that makes two requests the same one."""
    text = json.dumps([str(part) for part in parts])
    return hashlib.sha256(text.encode()).hexdigest()


def request_id_of(principal: Principal, session: str, key: str | None) -> str | None:
    """The id that this key gives a request: should a process die between doing the work and noting
    the answer, a retry finds the request that is there. None = a new one."""
    if key is None:
        return None
    return f"r_{fingerprint(principal.owner, session, key)[:20]}"


async def once(
    gateway: Gateway,
    principal: Principal,
    key: str | None,
    asked: str,
    status: int | Callable[[BaseModel], int],
    work: Callable[[], Awaitable[tuple[BaseModel, dict[str, str]]]],
) -> Response:
    """Run `work` -> (answer, headers) unless `key` was used for the same request before."""
    if key is None:
        answer, headers = await work()
        return _response(_status(status, answer), answer.model_dump(mode="json"), headers)
    if not ALLOWED.fullmatch(key):
        problem = FieldProblem("Idempotency-Key", key[:60], "1 to 128 visible ASCII characters")
        raise InvalidRequest("The Idempotency-Key can't be used.", fields=(problem,))
    name, redis = keys.idempotency(principal.owner, key), gateway.control.redis
    claim = json.dumps({"asked": asked, "claim": secrets.token_hex(8)})
    if not await redis.set(name, claim, nx=True, ex=CLAIMED_S):
        return _replay(key, asked, await redis.get(name))
    keeping = asyncio.create_task(_keep(redis, name, claim))
    stored = ""
    try:
        answer, headers = await work()
        body, code = answer.model_dump(mode="json"), _status(status, answer)
        stored = json.dumps({"asked": asked, "status": code, "headers": headers, "body": body})
    finally:
        await end([keeping])
        await scripts.run(redis, "settle", [name], [claim, stored, KEPT_S])
    return _response(code, body, headers)


async def _keep(redis: Redis, name: str, claim: str) -> None:
    """Renew a claim until cancelled; a Redis that is out of reach is waited out."""
    while True:
        await asyncio.sleep(CLAIMED_S / 4)
        with suppress(RedisError, OSError):
            await scripts.run(redis, "renew", [name], [claim, 1000 * CLAIMED_S])


def _replay(key: str, asked: str, stored: bytes | str | None) -> Response:
    known: dict[str, Any] = json.loads(stored) if stored else {"asked": asked}
    if known["asked"] != asked:
        seen = FieldProblem("Idempotency-Key", key, "a new key for a different request")
        raise InvalidRequest("This Idempotency-Key was used for another request.", fields=(seen,))
    if "body" not in known:
        raise Conflict("The first request with this Idempotency-Key still runs.", retry_after_s=1)
    headers = known["headers"] | {"Idempotent-Replayed": "true"}
    return _response(known["status"], known["body"], headers)


def _status(status: int | Callable[[BaseModel], int], answer: BaseModel) -> int:
    return status if isinstance(status, int) else status(answer)


def _response(status: int, body: dict[str, Any], headers: dict[str, str]) -> Response:
    return Response(json.dumps(body), status, headers, media_type="application/json")
