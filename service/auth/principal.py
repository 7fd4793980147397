"""Who is calling, and what they may do. Endpoints declare what they need with `requires`.

Without keys (the default on the loopback) everybody is `LOCAL` and may do everything. An endpoint
that declares nothing is refused to every key: forgetting is safe.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, TypeVar

from fastapi import Depends
from starlette.requests import HTTPConnection

from service.control.callers import Caller

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])
ATTRIBUTE = "mirage_scope"


class Scope(StrEnum):
    READ = "read"  # look at worlds: state, frames, videos, memory
    WALK = "walk"  # move in worlds: poses, paths, actions, cancel, keep-alive
    WRITE = "write"  # create, change, share and delete worlds
    METRICS = "metrics"  # scrape /metrics
    PUBLIC = "public"  # no key needed; of endpoints only, never of keys


KEY_SCOPES = tuple(scope for scope in Scope if scope is not Scope.PUBLIC)


@dataclass(frozen=True)
class Quota:
    """What one key may use; None = no limit."""

    requests_per_s: float | None = None
    frames_per_day: int | None = None
    max_sessions: int | None = None


@dataclass(frozen=True)
class Principal:
    """A caller. `owner` is the tenant: keys of one owner share worlds, other owners see none."""

    owner: str
    scopes: frozenset[Scope]
    key_id: str = ""
    via: str = ""  # the share link or ticket that stands for the key
    share: str = ""  # the share link, also where a ticket was made with one
    session: str | None = None  # of those: the only world they reach
    quota: Quota = Quota()
    is_local: bool = False  # there are no keys: everybody reaches every world

    @property
    def caller(self) -> Caller:
        return Caller(self.owner, self.share)


NOBODY = Principal("", frozenset())
LOCAL = Principal("", frozenset(KEY_SCOPES), is_local=True)


def requires(scope: Scope) -> Callable[[Endpoint], Endpoint]:
    """Declare, below the route's decorator, what a caller of this endpoint needs."""

    def declare(endpoint: Endpoint) -> Endpoint:
        setattr(endpoint, ATTRIBUTE, scope)
        return endpoint

    return declare


def declared_scope(endpoint: object) -> Scope | None:
    return getattr(endpoint, ATTRIBUTE, None)


def principal_of(connection: HTTPConnection) -> Principal:
    """The dependency: who the gate let through, for requests and WebSockets alike."""
    principal: Principal = connection.state.principal
    return principal


PrincipalDep = Annotated[Principal, Depends(principal_of)]
