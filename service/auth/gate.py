"""The gate in front of every endpoint: an ASGI layer that admits or refuses before a body is read.

How: it finds the route, asks the guard with the scope that the endpoint declared and the session
that the path names, and leaves the caller in `state.principal`. A path that no listed route answers
ends here, so a route that somebody forgot to list is closed, not open. Pages of other origins are
refused what changes anything, also without keys: a browser would send a form to the loopback for
any page. Nor may a page make its own name point here (DNS rebinding) and so become one of ours:
where nothing but the loopback keeps strangers out, requests have to call it by its name. Of a gRPC
call it was asked who sends it before it was read: `state.caller` is who, or why it is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from fastapi import Request
from redis.exceptions import RedisError
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as AsgiScope
from starlette.websockets import WebSocket
from structlog.contextvars import bound_contextvars

from service.auth.exposure import is_loopback
from service.auth.guard import Guard
from service.auth.principal import NOBODY, Principal, Scope, declared_scope
from service.errors import Forbidden, MirageError, NotFound
from service.gateway import Gateway
from service.rest.problems import answer_of, control_plane_down
from service.rest.videos import session_of
from service.ws import Socket

CALLER = "caller"  # of a request's state, where that is known before the gate asks
PORT = re.compile(r":\d*$")
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


class Gate:
    """`routes`: all there are, with paths from the root; `pages`: those anybody may read;
    `only_local`: whoever reaches the loopback may do everything.
    """

    def __init__(
        self,
        app: ASGIApp,
        routes: Sequence[BaseRoute],
        pages: frozenset[str],
        origins: frozenset[str],
        only_local: bool,
    ) -> None:
        self._app, self._routes, self._pages, self._origins = app, routes, pages, origins
        self._only_local = only_local

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        try:
            principal = await self._admit(scope)
        except (MirageError, RedisError, HTTPException) as error:
            await _refuse(scope, receive, send, error)
            return
        scope["state"]["principal"] = principal
        facts = {"key": principal.key_id, "owner": principal.owner, "via": principal.via}
        with bound_contextvars(**{name: value for name, value in facts.items() if value}):
            await self._app(scope, receive, send)

    async def _admit(self, scope: AsgiScope) -> Principal:
        connection = HTTPConnection(scope)
        if self._only_local:
            _check_host(connection)
        route, session = self._find(scope)
        self._check_origin(connection)
        caller: Principal | Exception | None = scope["state"].get(CALLER)
        if isinstance(caller, Exception):
            raise caller
        guard: Guard = connection.app.state.gateway.guard
        needs = self._needs(route)
        if needs is Scope.PUBLIC:
            return NOBODY
        if caller is not None:
            await guard.permit(caller, needs, session)
            return caller
        ticket = connection.query_params.get("ticket") if scope["type"] == "websocket" else None
        return await guard.admit(connection.headers, needs, session, ticket)

    def _find(self, scope: AsgiScope) -> tuple[BaseRoute, str | None]:
        """The route and the session it is about; raises HTTPException 404 or 405."""
        allowed: set[str] = set()
        for route in self._routes:
            match, child = route.matches(scope)
            if match is Match.NONE or _is_verb(child["path_params"]):
                continue
            if match is Match.FULL:
                scope["route"] = route  # for the log, should it be refused
                return route, _session(child["path_params"])
            allowed |= set(getattr(route, "methods", None) or ())
        if allowed:
            allowed |= {"HEAD"} if "GET" in allowed else set()
            raise HTTPException(405, headers={"Allow": ", ".join(sorted(allowed))})
        raise HTTPException(404)

    def _needs(self, route: BaseRoute) -> Scope | None:
        if getattr(route, "path", None) in self._pages:
            return Scope.PUBLIC
        return declared_scope(getattr(route, "endpoint", None))

    def _check_origin(self, connection: HTTPConnection) -> None:
        origin = connection.headers.get("origin")
        if origin is None or connection.scope.get("method") in SAFE or origin in self._origins:
            return
        if origin.partition("://")[2] != connection.headers.get("host"):
            raise Forbidden(
                f"Pages of {origin[:100]!r} may not do this; "
                "MIRAGE_CORS_ORIGINS names those that may."
            )


def _check_host(connection: HTTPConnection) -> None:
    host = connection.headers.get("host", "")
    if connection.client is None or is_loopback(PORT.sub("", host).strip("[]")):
        return  # or a gRPC call of ours, which has no client
    raise Forbidden(
        f"{host[:100]!r} is no name of the loopback, and no keys are required. Use localhost or "
        "127.0.0.1; for other names set MIRAGE_REQUIRE_KEYS=true, or MIRAGE_INSECURE=true if "
        "something in front keeps strangers out."
    )


def _session(path: Mapping[str, str]) -> str | None:
    """The session that a path is about."""
    if "video_id" in path:
        return session_of(path["video_id"])
    return path.get("session_id")


def _is_verb(path: Mapping[str, object]) -> bool:
    """An id takes `s1:fork` for its own; no id has a colon."""
    return any(":" in str(path.get(name, "")) for name in ("session_id", "generation_id"))


async def _refuse(scope: AsgiScope, receive: Receive, send: Send, error: Exception) -> None:
    if isinstance(error, RedisError):
        error = control_plane_down(error)
    if scope["type"] == "http":
        response = await answer_of(Request(scope, receive), error)
        await response(scope, receive, send)
        return
    if not isinstance(error, MirageError):
        error = NotFound("There is no such stream; one is at /v1/sessions/{id}/stream.")
    websocket = WebSocket(scope, receive, send)
    gateway: Gateway = websocket.app.state.gateway
    gateway.metrics.refused(error)
    await Socket(websocket).refuse(await gateway.control.rebuild.doubted(error))
