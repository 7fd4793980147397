"""Authentication, rates and ownership: the questions that REST, WebSocket and gRPC ask alike.

How: `admit` = `authenticate` (who is this?), then `permit`: scope (may they?) and `own` (is this
world theirs?); gRPC reads what a call says between the two. A world of somebody else and one that
never was take the same path to the same answer. Trade-off: a key is read from Redis for each
request (about 0.3 ms), so that revoking it works at once everywhere; a stream asks when it opens,
and every other second.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from service.auth.grants import SHARE, TICKET, Grants
from service.auth.keyring import Keyring, parse_credential
from service.auth.principal import LOCAL, Principal, Scope
from service.control import keys, scripts
from service.errors import (
    FieldProblem,
    Forbidden,
    InvalidRequest,
    OverQuota,
    TooManyRequests,
    Unauthenticated,
    UnknownSession,
)
from service.store.kept import Kept

BURST_S = 5.0  # a full bucket of requests lasts this long at the key's rate
DAY_S = 86_400.0
CONFIRM_S = 2.0  # between two looks at the key that a stream was opened with
HOW = "Send it as `Authorization: Bearer mk_...`; `mirage keys create` makes one."


class Guard:
    def __init__(self, redis: Redis, kept: Kept, required: bool) -> None:
        self._redis: Any = redis  # redis-py's types mix its sync and async answers
        self._required = required
        self.keyring, self.grants = Keyring(redis, kept), Grants(redis, kept)

    async def admit(
        self,
        headers: Mapping[str, str],
        scope: Scope | None,
        session: str | None = None,
        ticket: str | None = None,
    ) -> Principal:
        """Who is calling, once they may do this to `session`; `scope` None = nobody may.

        Raises Unauthenticated, TooManyRequests, Forbidden, UnknownSession.
        """
        principal = await self.authenticate(headers, ticket)
        await self.permit(principal, scope, session)
        return principal

    async def permit(
        self, principal: Principal, scope: Scope | None, session: str | None = None
    ) -> None:
        """Whether somebody who is known may do this; raises Forbidden, UnknownSession."""
        if scope is None:
            raise Forbidden("No key may do this: the endpoint declares no scope.")
        if scope not in principal.scopes:
            has = ", ".join(sorted(principal.scopes)) or "none"
            raise Forbidden(f"This needs the scope `{scope}`; this key has: {has}.")
        if session is not None:
            await self.own(principal, session)
        elif principal.session is not None:
            raise Forbidden("A share link or ticket reaches its own world only.")

    async def authenticate(
        self, headers: Mapping[str, str], ticket: str | None = None
    ) -> Principal:
        """Who sends these headers (names in lower case), or has this ticket, and is not too fast.

        Raises Unauthenticated, TooManyRequests.
        """
        if not self._required:
            return LOCAL
        kind, name, digest = parse_credential(ticket or _bearer(headers))
        if (kind == TICKET) != bool(ticket):  # what lasts must not stand in addresses, or in logs
            raise Unauthenticated(
                "A ticket, and nothing else, goes into a stream's address (`?ticket=`); keys and "
                "share links go into the header `Authorization: Bearer ...`."
            )
        if kind == "mk":
            principal = (await self.keyring.recognise(name, digest)).principal
        else:
            principal = await self._granted(kind, name, digest)
        try:
            await self.spend_request(principal)
        except RedisError:  # as the keyring does: what may only scrape is let in uncounted
            if principal.scopes != {Scope.METRICS}:
                raise
        return principal

    async def own(self, principal: Principal, session: str) -> None:
        """Raises UnknownSession, for another's world just as for none."""
        if principal.is_local:
            return
        owner = await self._redis.hget(keys.record(session), "owner")
        its_owner = None if owner is None else owner.decode()
        if its_owner != principal.owner or principal.session not in (None, session):
            raise UnknownSession(f"there is no session {session!r}")

    async def confirm(self, principal: Principal) -> None:
        """Raises Unauthenticated once the key, or the share link, of whoever was let in is gone."""
        if principal.is_local:
            return
        if await self.keyring.find(principal.key_id) is None:
            raise Unauthenticated("The key of this stream was revoked or has expired.")
        if principal.share and not await self.grants.is_good(principal.share):
            raise Unauthenticated("The share link of this stream was revoked or has expired.")

    async def shared_world(self, credential: str) -> str:
        """The session that a share link shows; raises InvalidRequest for what is no such link."""
        try:
            kind, name, digest = parse_credential(credential)
            if kind == SHARE:
                world = (await self._granted(kind, name, digest)).session
                assert world is not None
                return world
        except Unauthenticated as error:
            detail = error.detail
        else:
            detail = "This is a key, not a share link."
        problem = FieldProblem("share", f"{credential[:15]} ...", "the credential of a share link")
        raise InvalidRequest(detail, fields=(problem,))

    async def spend_frames(self, principal: Principal, num_frames: int) -> None:
        """Take frames from the key's day; raises TooManyRequests, and OverQuota for more than a
        day has."""
        most = principal.quota.frames_per_day
        if most is None:
            return
        if num_frames > most:
            allowed = f"at most {most:,} frames, which is what this key gets a day"
            problem = FieldProblem("path", f"{num_frames:,} frames", allowed)
            detail = f"A path of {problem.seen} is too long: {allowed}."
            raise OverQuota(detail, fields=(problem,))
        gets = f"{most:,} a day, a few at a time"
        bucket = keys.bucket(principal.key_id, "frames")
        await self._spend(bucket, "This key's frames", gets, num_frames, most / DAY_S, most)

    async def _granted(self, kind: str, name: str, digest: str) -> Principal:
        grant = await self.grants.recognise(kind, name, digest)
        key = await self.keyring.find(grant.key_id)
        if key is None:
            raise Unauthenticated("The key that made this share link or ticket is gone.")
        if grant.share and not await self.grants.is_good(grant.share):
            raise Unauthenticated("The share link that made this ticket is gone.")
        scopes = grant.scopes & key.scopes
        share = grant.id if kind == SHARE else grant.share
        narrowed = replace(key.principal, scopes=scopes, session=grant.session)
        return replace(narrowed, via=grant.id, share=share)

    async def spend_request(self, principal: Principal) -> None:
        """One of the key's requests per second. The guests of all its share links together have as
        many of their own, those of one link half of that. Raises TooManyRequests.
        """
        rate = principal.quota.requests_per_s
        if rate is None:
            return
        key, share = principal.key_id, principal.share
        buckets = [(keys.bucket(key, "requests"), "This key's requests", rate)]
        if share:
            buckets = [
                (keys.bucket(share, "requests"), "This share link's requests", rate / 2),
                (keys.bucket(key, "guests"), "The requests of this key's share links", rate),
            ]
        for bucket, whose, per_s in buckets:
            full = max(1.0, per_s * BURST_S)
            await self._spend(bucket, whose, f"{per_s:g} a second", 1, per_s, full)

    async def _spend(
        self, bucket: str, whose: str, gets: str, count: int, per_s: float, full: float
    ) -> None:
        wait_ms = int(await scripts.run(self._redis, "rate", [bucket], [count, per_s, full]))
        if wait_ms:
            raise TooManyRequests(
                f"{whose} are used up: {count:,} asked for; the limit is {gets}.",
                retry_after_s=wait_ms / 1000,
            )


def _bearer(headers: Mapping[str, str]) -> str:
    sent = headers.get("authorization", "")
    kind, _, credential = sent.partition(" ")
    if kind.lower() != "bearer" or not credential:
        seen = "The Authorization header is not `Bearer` and a key" if sent else "No key was sent"
        raise Unauthenticated(f"{seen}. {HOW}")
    return credential.strip()
