"""API keys: made, listed, revoked, and recognised.

A key reads `mk_<id>_<secret>`. The secret has 256 random bits, so one SHA-256 of it is enough at
rest; it is compared in constant time, and an id that does not exist costs the same comparison. What
is lost can't be shown again, only replaced: several keys may share an owner, so rotation needs no
pause.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from redis.asyncio import Redis
from redis.exceptions import RedisError

from service.auth.audit import audit
from service.auth.principal import Principal, Quota, Scope
from service.control import keys
from service.errors import NotFound, Unauthenticated
from service.store.kept import Kept, Record

FORM = re.compile(r"(m[kst])_([0-9a-f]{12})_([\w-]{43})")
NOBODYS_DIGEST = hashlib.sha256(b"nobody's").hexdigest()
OWNER = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
OWNER_IN_WORDS = (
    "up to 64 letters of English, digits, dots, dashes and underscores, the first a letter or digit"
)


class ApiKey(BaseModel):
    """What is kept of a key: everything but its secret."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    digest: str  # SHA-256 of the secret, hexadecimal
    owner: str = Field(pattern=OWNER)
    scopes: frozenset[Scope]
    label: str = Field("", max_length=100)
    requests_per_s: float | None = Field(None, gt=0, allow_inf_nan=False)
    frames_per_day: int | None = Field(None, gt=0)
    max_sessions: int | None = Field(None, gt=0)
    created_s: float
    expires_s: float | None = None

    @property
    def has_expired(self) -> bool:
        return self.expires_s is not None and self.expires_s <= time.time()

    @property
    def principal(self) -> Principal:
        quota = Quota(self.requests_per_s, self.frames_per_day, self.max_sessions)
        return Principal(self.owner, self.scopes, self.id, quota=quota)


def new_credential(kind: str) -> tuple[str, str, str]:
    """`kind` (mk, ms, mt) -> the whole text, its id, and the digest of its secret."""
    name, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    return f"{kind}_{name}_{secret}", name, digest_of(secret)


def digest_of(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def parse_credential(text: str) -> tuple[str, str, str]:
    """kind, id, digest of the secret; raises Unauthenticated for what has another form."""
    match = FORM.fullmatch(text)
    if match is None:
        raise Unauthenticated(
            "This is not a key: a key reads mk_<12 characters>_<43 characters>, "
            "a share link begins with ms_, a ticket with mt_."
        )
    kind, name, secret = match.groups()
    return kind, name, digest_of(secret)


class Keyring:
    def __init__(self, redis: Redis, kept: Kept) -> None:
        self._redis: Any = redis  # redis-py's types mix its sync and async answers
        self._kept = kept
        self._scrapers: dict[str, ApiKey] = {}  # that were recognised here, by id

    async def create(
        self,
        owner: str,
        scopes: frozenset[Scope],
        *,
        lifetime_s: float | None = None,
        **fields: Any,
    ) -> tuple[ApiKey, str]:
        """A new key and its text, which is shown only now; `fields` are those of ApiKey."""
        text, name, digest = new_credential("mk")
        now = time.time()
        expires_s = None if lifetime_s is None else now + lifetime_s
        key = ApiKey(
            id=name,
            digest=digest,
            owner=owner,
            scopes=scopes,
            created_s=now,
            expires_s=expires_s,
            **fields,
        )
        await self._kept.put(
            Record(
                name=f"mk-{name}",
                key=keys.api_key(name),
                value=key.model_dump_json(),
                index=keys.API_KEYS,
                member=name,
                score=now,
            )
        )
        audit("key created", key=name, of_owner=owner, scopes=",".join(sorted(scopes)))
        return key, text

    async def list(self) -> list[ApiKey]:
        """All keys, oldest first."""
        names = await self._redis.zrange(keys.API_KEYS, 0, -1)
        found = [await self._redis.get(keys.api_key(name.decode())) for name in names]
        return [ApiKey.model_validate_json(one) for one in found if one]

    async def revoke(self, name: str) -> None:
        """At once and for good; its share links and tickets end with it.

        Raises NotFound, StoreDown.
        """
        if not await self._kept.forget(f"mk-{name}", keys.api_key(name), keys.API_KEYS, name):
            raise NotFound(f"there is no key {name!r}; `mirage keys list` shows them")
        audit("key revoked", key=name)

    async def find(self, name: str) -> ApiKey | None:
        """The key of this id, unless it is revoked or has expired."""
        stored = await self._redis.get(keys.api_key(name))
        key = ApiKey.model_validate_json(stored) if stored else None
        return None if key is None or key.has_expired else key

    async def recognise(self, name: str, digest: str) -> ApiKey:
        """The key that this secret belongs to; raises Unauthenticated. One that may only scrape is
        taken for what it was while Redis does not answer: metrics are wanted most just then.
        """
        try:
            key = await self.find(name)
        except RedisError:
            key = self._scrapers.get(name)
            if key is None or key.has_expired:
                raise
        else:
            self._scrapers.pop(name, None)
        known = NOBODYS_DIGEST if key is None else key.digest
        if not hmac.compare_digest(known, digest) or key is None:
            raise Unauthenticated("This key is unknown, revoked or expired.")
        if key.scopes == {Scope.METRICS}:
            self._scrapers[name] = key
        return key
