"""Calls of our own REST API without a network: the app is called as the HTTP server would.

So a gRPC call is admitted, checked, done once per idempotency key, logged and refused by the very
code that serves REST. Trade-off: about a millisecond of routing and JSON per call, which unary
calls can afford; frames and poses travel over the stream.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import quote, urlencode

import httpx
from starlette.types import ASGIApp, Message

from service.auth.gate import CALLER
from service.auth.principal import Principal
from service.errors import MirageError
from service.rest.findings import BODY
from service.rest.problems import WHOLE
from service.tasks import end

PIECES_AHEAD = 4  # of a body that is read slowly
FAILED = "failed"  # a message of our own, beside ASGI's


@dataclass(frozen=True)
class Ask:
    """One request."""

    method: str
    path: str  # decoded, as ASGI has it
    query: Mapping[str, Any] = field(default_factory=dict)
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    pieces: AsyncIterator[bytes] | None = None  # of a body that is still arriving
    caller: Principal | Exception | None = None  # or what the call is refused with; None: ask
    respelt: Mapping[str, str] = field(default_factory=dict)  # part of the path -> as it was sent
    whole: str = BODY  # what problems call all of it

    def with_json(self, values: Mapping[str, Any]) -> Ask:
        """With this body."""
        return self._with(json.dumps(values).encode(), "application/json")

    def with_form(self, fields: Mapping[str, str], files: Mapping[str, bytes]) -> Ask:
        """With a multipart body."""
        parts: Any = [(name, (None, value)) for name, value in fields.items()]
        parts += [(name, (name, data)) for name, data in files.items()]
        request = httpx.Request("POST", "http://inside/", files=parts)
        return self._with(request.read(), request.headers.get("content-type", ""))

    def with_pieces(self, pieces: AsyncIterator[bytes]) -> Ask:
        """With a tar file that is still arriving."""
        return replace(self._with(b"", "application/x-tar"), pieces=pieces)

    def _with(self, body: bytes, media_type: str) -> Ask:
        headers = {**self.headers, "content-type": media_type} if media_type else self.headers
        return replace(self, body=body, headers=headers)


@dataclass(frozen=True)
class Answer:
    ask: Ask
    status: int
    headers: dict[str, str]
    body: AsyncIterator[bytes]

    async def read(self) -> bytes:
        return b"".join([piece async for piece in self.body])


@asynccontextmanager
async def asked(app: ASGIApp, ask: Ask) -> AsyncIterator[Answer]:
    """The answer as soon as its head is there; leaving the block ends what still runs."""
    sent: asyncio.Queue[Message] = asyncio.Queue(PIECES_AHEAD)
    unread = _requests(ask.body, ask.pieces)

    async def receive() -> Message:
        async for message in unread:
            return message
        await asyncio.Event().wait()  # the caller leaves by cancelling
        raise AssertionError

    task = asyncio.create_task(_run(app, _scope(ask), receive, sent))
    try:
        head = await _next(sent)
        headers = {name.decode(): value.decode("latin-1") for name, value in head["headers"]}
        yield Answer(ask, head["status"], headers, _pieces(sent, task))
    finally:
        await end([task])


async def _requests(body: bytes, pieces: AsyncIterator[bytes] | None) -> AsyncIterator[Message]:
    if pieces is not None:
        async for piece in pieces:
            yield {"type": "http.request", "body": piece, "more_body": True}
    yield {"type": "http.request", "body": body, "more_body": False}


async def _run(app: ASGIApp, scope: Any, receive: Any, sent: asyncio.Queue[Message]) -> None:
    """Ends with a message in any case: whoever waits for the next one must not wait for ever."""
    try:
        await app(scope, receive, sent.put)
    except Exception as error:  # noqa: BLE001 raised again where the answer is read
        # What can't be answered any more, as an answer has begun, comes wrapped.
        known = isinstance(error.__cause__, MirageError)
        await sent.put({"type": FAILED, "error": error.__cause__ if known else error})


async def _next(sent: asyncio.Queue[Message]) -> Message:
    """Raises what ended the app before this message."""
    message = await sent.get()
    if message["type"] == FAILED:
        raise message["error"]
    return message


async def _pieces(sent: asyncio.Queue[Message], task: asyncio.Task[None]) -> AsyncIterator[bytes]:
    more = True
    while more:
        message = await _next(sent)
        more = message.get("more_body", False)
        if message.get("body"):
            yield message["body"]
    await task  # files are closed after the last piece


def _scope(ask: Ask) -> dict[str, Any]:
    headers = {**ask.headers, "host": "inside"}
    if ask.pieces is None:
        headers["content-length"] = str(len(ask.body))
    query = {name: value for name, value in ask.query.items() if value is not None}
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": ask.method,
        "scheme": "http",
        "path": ask.path,
        "raw_path": quote(ask.path).encode(),
        "root_path": "",
        "query_string": urlencode(query).encode(),
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers.items()],
        "client": None,
        "server": None,
        "state": {WHOLE: ask.whole, CALLER: ask.caller},
    }
