"""What a key hands on: share links (one world, until a moment) and tickets (one stream, at once).

Both are credentials like keys, hashed at rest, and narrower than the key that made them: they end
when it is revoked. A ticket exists because browsers can't send headers with a WebSocket: it stands
in the URL, so it is worth nothing after its first use or half a minute.
"""

from __future__ import annotations

import hmac
import time
from typing import Any

from pydantic import BaseModel, ConfigDict
from redis.asyncio import Redis

from service.auth.audit import audit
from service.auth.keyring import NOBODYS_DIGEST, new_credential
from service.auth.principal import Principal, Scope
from service.control import keys
from service.errors import Conflict, NotFound, Unauthenticated
from service.limits import MAX_SHARES
from service.store.kept import Kept, Record

TICKET_S = 30.0
SHARE, TICKET = "ms", "mt"
UNKNOWN = "This share link or ticket is unknown, used up or expired."


class Grant(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    kind: str
    digest: str
    key_id: str  # the key that made it
    scopes: frozenset[Scope]
    session: str  # the only world it reaches
    expires_s: float
    share: str = ""  # of a ticket: the share link that it was made with


class Grants:
    def __init__(self, redis: Redis, kept: Kept) -> None:
        self._redis: Any = redis  # redis-py's types mix its sync and async answers
        self._kept = kept

    async def ticket(self, principal: Principal, session: str) -> tuple[Grant, str]:
        """A way into one stream of one world, for what `principal` may do now."""
        grant, text = _new(TICKET, principal, principal.scopes, session, TICKET_S)
        lifetime_ms = int(1000 * TICKET_S)
        await self._redis.set(keys.grant(grant.id), grant.model_dump_json(), px=lifetime_ms)
        return grant, text

    async def share(
        self, principal: Principal, session: str, scopes: frozenset[Scope], lifetime_s: float
    ) -> tuple[Grant, str]:
        """Access to one world for whoever has the text, which is shown only now.

        Raises Conflict if the world has as many already.
        """
        if len(await self._good(session)) >= MAX_SHARES:
            raise Conflict(
                f"session {session!r} has {MAX_SHARES} share links; revoke one, or wait until one "
                "expires"
            )
        grant, text = _new(SHARE, principal, scopes & principal.scopes, session, lifetime_s)
        await self._kept.put(
            Record(
                name=f"{SHARE}-{grant.id}",
                key=keys.grant(grant.id),
                value=grant.model_dump_json(),
                index=keys.shares(session),
                member=grant.id,
                score=grant.expires_s,
                expires_s=grant.expires_s,
            )
        )
        audit(
            "share created", share=grant.id, session=session, scopes=",".join(sorted(grant.scopes))
        )
        return grant, text

    async def shares(self, session: str) -> list[Grant]:
        """The share links of a session that are still good, soonest to expire first."""
        names = await self._good(session)
        found = [await self._redis.get(keys.grant(name.decode())) for name in names]
        return [Grant.model_validate_json(one) for one in found if one]

    async def _good(self, session: str) -> list[bytes]:
        found: list[bytes] = await self._redis.zrangebyscore(
            keys.shares(session), time.time(), "+inf"
        )
        return found

    async def is_good(self, name: str) -> bool:
        """Whether a share link was not revoked and has not expired."""
        stored = await self._redis.get(keys.grant(name))
        return bool(stored) and Grant.model_validate_json(stored).expires_s > time.time()

    async def revoke(self, session: str, name: str) -> None:
        """End one share link; raises NotFound, StoreDown."""
        if await self._redis.zscore(keys.shares(session), name) is None:
            raise NotFound(f"session {session!r} has no share link {name!r}")
        await self._kept.forget(f"{SHARE}-{name}", keys.grant(name), keys.shares(session), name)
        audit("share revoked", share=name, session=session)

    async def recognise(self, kind: str, name: str, digest: str) -> Grant:
        """Raises Unauthenticated; a ticket is used up by this."""
        stored = await self._redis.get(keys.grant(name))
        grant = Grant.model_validate_json(stored) if stored else None
        known = NOBODYS_DIGEST if grant is None else grant.digest
        same = hmac.compare_digest(known, digest)
        if grant is None or not same or grant.kind != kind or grant.expires_s <= time.time():
            raise Unauthenticated(UNKNOWN)
        if kind == TICKET and not await self._redis.delete(keys.grant(name)):
            raise Unauthenticated(UNKNOWN)  # somebody else has just used it
        return grant


def _new(
    kind: str, principal: Principal, scopes: frozenset[Scope], session: str, lifetime_s: float
) -> tuple[Grant, str]:
    text, name, digest = new_credential(kind)
    grant = Grant(
        id=name,
        kind=kind,
        digest=digest,
        key_id=principal.key_id,
        scopes=scopes,
        session=session,
        expires_s=time.time() + lifetime_s,
        share=principal.share,
    )
    return grant, text
