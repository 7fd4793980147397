"""Webhooks: a signed POST to a client's server when a generation is final.

How: who asks for a generation names a target, which must lie under one that the operator listed; no
redirect is followed, so nobody can be sent elsewhere. A due list in Redis holds what is to be told;
every gateway takes from it, looks whether the generation is final, and delivers. Messages are
signed as Standard Webhooks says, with a secret of the owner's that follows from the server's.
Trade-off: at least once, not exactly once; `webhook-id` is the same for every try, so a receiver
can tell. Within a second, or TIMEOUT_S while another receiver is slow: a round ends with its last.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import structlog
from pydantic import BaseModel, ConfigDict, ValidationError
from redis.exceptions import RedisError

from service.control import keys, scripts
from service.control.plane import ControlPlane
from service.control.requests import Progress
from service.errors import (
    FieldProblem,
    InvalidRequest,
    SessionDeleted,
    UnknownRequest,
    UnknownSession,
)
from service.rest.answers import generation_out
from service.settings import Settings, masked
from service.tasks import end

LOG = structlog.get_logger("mirage.webhooks")
PERIOD_S = 0.5
LOOK_S = 1.0  # how often a generation that is not final is looked at
CLAIM_S = 30.0  # a gateway that dies while delivering is followed by another after this
TIMEOUT_S = 10.0
RETRIES_S = (2, 10, 60, 300, 1800, 7200)
BATCH = 50


class Errand(BaseModel):
    """One message to bring; its JSON is the member of the due list."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    session: str
    request: str
    target: str
    owner: str
    tries: int = 0

    def facts(self) -> dict[str, Any]:
        """For the log: behind the `?` a client may have a secret."""
        return self.model_dump() | {"target": self.target.partition("?")[0]}


class Webhooks:
    def __init__(
        self,
        control: ControlPlane,
        settings: Settings,
        transport: httpx.AsyncBaseTransport | None = None,
        timeout_s: float = TIMEOUT_S,  # of a whole delivery
    ) -> None:
        """`transport` replaces the network in tests."""
        self._control = control
        self._redis: Any = control.redis  # redis-py's types mix its sync and async answers
        self._allowed = settings.allowed_webhooks
        self._secret = settings.webhook_secret.encode()
        self._client = httpx.AsyncClient(
            timeout=timeout_s, follow_redirects=False, trust_env=False, transport=transport
        )
        self._timeout_s = timeout_s

    def check(self, target: str) -> None:
        """Raises InvalidRequest for a target that the operator did not list."""
        if not any(_under(target, allowed) for allowed in self._allowed):
            allowed = f"a URL at or under one of: {', '.join(map(masked, self._allowed))}"
            if not self._allowed:
                allowed = "none: MIRAGE_WEBHOOK_TARGETS of the server is empty"
            problem = FieldProblem("webhook", target[:200], allowed)
            raise InvalidRequest("This webhook is not allowed.", fields=(problem,))

    def secret_of(self, owner: str) -> str:
        """What an owner checks signatures with, as libraries for Standard Webhooks take it."""
        return f"whsec_{base64.b64encode(self._key(owner)).decode()}"

    async def expect(self, errand: Errand) -> None:
        """Bring this once the request is final; call it before the request is appended."""
        await self._redis.zadd(keys.WEBHOOKS, {errand.model_dump_json(): time.time() + LOOK_S})

    async def forget(self, errand: Errand) -> None:
        await self._redis.zrem(keys.WEBHOOKS, errand.model_dump_json())

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Deliver in the background inside the block, if there is anywhere to deliver to."""
        task = asyncio.create_task(self._forever()) if self._allowed else None
        try:
            yield
        finally:
            await end([task] if task else [])
            await self._client.aclose()

    async def _forever(self) -> None:
        while True:
            try:
                await self.deliver_due()
            except (RedisError, OSError):  # waited out: /readyz tells of it
                pass
            except Exception:  # a defect, but nobody else delivers
                LOG.exception("webhooks failed")
            await asyncio.sleep(PERIOD_S)

    async def deliver_due(self) -> None:
        """One round over what is due."""
        now = time.time()
        due = await scripts.run(self._redis, "claim", [keys.WEBHOOKS], [now, now + CLAIM_S, BATCH])
        await asyncio.gather(*(self._one(member) for member in due))

    async def _one(self, member: bytes) -> None:
        """What is wrong with one costs no other; it is due again when its claim ends."""
        try:
            await self._look(member)
        except Exception as error:  # noqa: BLE001 an errand of another version among them
            LOG.warning("webhook not looked at", error=_brief(error), **_facts(member))

    async def _look(self, member: bytes) -> None:
        errand = Errand.model_validate_json(member)
        try:
            progress = await self._control.requests.get(errand.session, errand.request)
        except (UnknownSession, SessionDeleted, UnknownRequest):
            await self._redis.zrem(keys.WEBHOOKS, member)
            return
        if not progress.state.is_final:
            await self._redis.zadd(keys.WEBHOOKS, {member: time.time() + LOOK_S}, xx=True)
            return
        problem = await self._send(errand, progress)
        if problem:
            await self._try_later(errand, problem)
        await self._redis.zrem(keys.WEBHOOKS, member)

    async def _try_later(self, errand: Errand, problem: str) -> None:
        LOG.warning("webhook failed", problem=problem, **errand.facts())
        if errand.tries >= len(RETRIES_S):
            LOG.error("webhook given up", **errand.facts())
            return
        later = time.time() + RETRIES_S[errand.tries]
        again = errand.model_copy(update={"tries": errand.tries + 1})
        await self._redis.zadd(keys.WEBHOOKS, {again.model_dump_json(): later})

    async def _send(self, errand: Errand, progress: Progress) -> str:
        """What went wrong, or nothing. The answer's body is not read."""
        out = generation_out(progress)
        message = Message(type=f"generation.{out.state}", session=errand.session, generation=out)
        body = message.model_dump_json().encode()
        name, moment = f"{errand.session}.{errand.request}", str(int(time.time()))
        headers = {
            "content-type": "application/json",
            "webhook-id": name,
            "webhook-timestamp": moment,
            "webhook-signature": f"v1,{self.sign(errand.owner, name, moment, body)}",
        }
        try:
            call = self._client.stream("POST", errand.target, content=body, headers=headers)
            async with asyncio.timeout(self._timeout_s), call as answer:  # httpx: of each read
                return "" if answer.is_success else f"status {answer.status_code}"
        except (httpx.HTTPError, TimeoutError) as error:
            return f"{type(error).__name__}: {error}"

    def sign(self, owner: str, name: str, moment: str, body: bytes) -> str:
        """Base64 of HMAC-SHA256 over `id.timestamp.body`."""
        signed = b".".join((name.encode(), moment.encode(), body))
        return base64.b64encode(hmac.digest(self._key(owner), signed, "sha256")).decode()

    def _key(self, owner: str) -> bytes:
        return hmac.digest(self._secret, f"webhook:{owner}".encode(), hashlib.sha256)


class Message(BaseModel):
    """The body of a webhook."""

    type: str  # generation.done, .failed or .cancelled
    session: str
    generation: Any


def _facts(member: bytes) -> dict[str, Any]:
    """What may be logged of an errand: nothing, if it can't be read."""
    try:
        return Errand.model_validate_json(member).facts()
    except ValidationError:
        return {}


def _brief(error: Exception) -> str:
    """Without the input, which pydantic repeats."""
    if isinstance(error, ValidationError):
        return str(error.errors(include_url=False, include_input=False, include_context=False))
    return repr(error)


def _under(target: str, allowed: str) -> bool:
    """Whether a URL has the origin of another and a path at or below its path; as the client reads
    them that will send it: it resolves `..`, and refuses what it can't send."""
    try:
        one, other = httpx.URL(target), httpx.URL(allowed)
    except httpx.InvalidURL:
        return False
    same = (one.scheme, one.host, one.port) == (other.scheme, other.host, other.port)
    if not same or one.scheme not in ("http", "https") or one.userinfo:
        return False
    path, base = (url.raw_path.partition(b"?")[0] for url in (one, other))
    if any(
        odd in path for odd in (b"//", b"%", b"\\", b";")
    ):  # servers differ in what they make of it
        return False
    base = base.rstrip(b"/")
    return path == base or path.startswith(base + b"/")
