"""The unary calls of mirage.v1.World: which REST endpoint each is, and how its fields travel.

A request's fields fill the path's placeholders; the others go into the query, the JSON body or the
form. The answer's JSON fills the message of the same fields. What is not one to one stands below
the table. How: who calls is asked before the message is read, so a stranger costs a look at his
key; what can't be let in is refused by REST's gate all the same, which logs and counts it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NoReturn

from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc import aio
from redis.exceptions import RedisError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from service.convert import filled, given
from service.errors import FieldProblem, InvalidRequest, MirageError
from service.gateway import Gateway
from service.limits import MAX_HEAD_BYTES, MAX_JSON_BYTES, MAX_NAME_CHARS
from service.paths import check_lists
from service.poses import check_length
from service.rest.findings import BODY
from service.rpc.inside import Answer, Ask, asked
from service.rpc.problems import note_request_id, refuse, refuse_document
from service.rpc.reading import message_of
from service.telemetry import REQUEST_ID_HEADER
from service.wire import world_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["World"]
PASSED_ON = ("authorization", REQUEST_ID_HEADER, "idempotency-key", "traceparent")
SESSION = "/v1/sessions/{session}"
FILES = ("image", "depth", "mask", "input_reference")
SPREAD = ("path", "observation")  # messages whose fields are REST's own
CHUNK_BYTES = 1 << 18
MOST_BYTES = {"query": MAX_HEAD_BYTES, "json": MAX_JSON_BYTES, "form": MAX_JSON_BYTES}  # but files
BRIEF_BYTES = 16_384  # a message that is longer is translated beside the event loop

Context = Any  # grpc.aio.ServicerContext; its stubs are generic in types that handlers don't share
Requests = AsyncIterator[bytes]


@dataclass(frozen=True)
class Route:
    method: str
    path: str
    rest: Literal["query", "json", "form"] = "query"  # where fields that are not in the path go
    is_public: bool = False  # needs no key


ROUTES = {
    "CreateSession": Route("POST", "/v1/sessions", "form"),
    "GetSession": Route("GET", SESSION),
    "ListSessions": Route("GET", "/v1/sessions"),
    "DeleteSession": Route("DELETE", SESSION),
    "KeepAlive": Route("POST", f"{SESSION}:keep-alive"),
    "GetMemory": Route("GET", f"{SESSION}/memory"),
    "GetMemoryPoints": Route("GET", f"{SESSION}/memory/points"),
    "CreateObservation": Route("POST", f"{SESSION}/observations", "form"),
    "Fork": Route("POST", f"{SESSION}:fork", "json"),
    "ForkShared": Route("POST", "/v1/forks", "json"),
    "Rewind": Route("POST", f"{SESSION}:rewind", "json"),
    "Snapshot": Route("POST", f"{SESSION}:snapshot", "json"),
    "ListSnapshots": Route("GET", f"{SESSION}/snapshots"),
    "ForgetSnapshot": Route("DELETE", f"{SESSION}/snapshots/{{name}}"),
    "Export": Route("GET", f"{SESSION}/export"),
    "Import": Route("POST", "/v1/sessions:import"),
    "CreateGeneration": Route("POST", f"{SESSION}/generations", "json"),
    "GetGeneration": Route("GET", f"{SESSION}/generations/{{id}}"),
    "ListGenerations": Route("GET", f"{SESSION}/generations"),
    "CancelGeneration": Route("POST", f"{SESSION}/generations/{{id}}:cancel"),
    "WatchGeneration": Route("GET", f"{SESSION}/generations/{{id}}/events"),
    "GetVideo": Route("GET", f"{SESSION}/generations/{{id}}/video.mp4"),
    "ListFrames": Route("GET", f"{SESSION}/frames"),
    "GetFrame": Route("GET", f"{SESSION}/frames/{{frame}}"),
    "CreateShare": Route("POST", f"{SESSION}/shares", "json"),
    "ListShares": Route("GET", f"{SESSION}/shares"),
    "RevokeShare": Route("DELETE", f"{SESSION}/shares/{{id}}"),
    "CreateTicket": Route("POST", f"{SESSION}/tickets"),
    "GetWebhookSecret": Route("GET", "/v1/webhook-secret"),
    "CreateVideo": Route("POST", "/v1/videos", "form"),
    "ListVideos": Route("GET", "/v1/videos"),
    "GetVideoJob": Route("GET", "/v1/videos/{id}"),
    "GetVideoContent": Route("GET", "/v1/videos/{id}/content"),
    "DeleteVideo": Route("DELETE", "/v1/videos/{id}"),
    "ListSamples": Route("GET", "/v1/samples", is_public=True),
    "GetSamplePicture": Route("GET", "/v1/samples/{name}.png", is_public=True),
}


class Calls:
    """Handlers by name of the call. Each reads its own message, once it is known who sends it: the
    iterator that grpc.aio gives is for those that read more than one.
    """

    def __init__(self, gateway: Gateway, app: ASGIApp) -> None:
        self._gateway, self._app = gateway, app

    def unary(self, name: str) -> Callable[[Requests, Context], Any]:
        """One request, one answer."""
        answers = GetMessageClass(SERVICE.methods_by_name[name].output_type)

        async def handle(_: Requests, context: Context) -> Message:
            async with self._asked(name, context) as answer:
                body = await _checked(answer, context)
            if answers is pb.Chunk:
                return pb.Chunk(data=body)
            return filled(answers, _shaped(name, json.loads(body))) if body else answers()

        return self._frame if name == "GetFrame" else handle

    async def _frame(self, _: Requests, context: Context) -> Message:
        """What is said of a frame, and its picture."""
        async with self._asked("GetFrame", context) as answer:
            image = await _checked(answer, context)
        frames, number = answer.ask.path.rsplit("/", 1)
        before = replace(answer.ask, path=frames, query={"after": int(number) - 1, "limit": 1})
        async with self._answered(before, context) as answer:
            heads = json.loads(await _checked(answer, context))["frames"]
        frame = filled(pb.Frame, _head(heads[0]))
        frame.image = image
        return frame

    def file(self, name: str) -> Callable[[Requests, Context], AsyncIterator[pb.Chunk]]:
        """One request, a file in pieces."""

        async def handle(_: Requests, context: Context) -> AsyncIterator[pb.Chunk]:
            async with self._asked(name, context) as answer:
                body = await _checked(answer, context)
            for start in range(0, len(body), CHUNK_BYTES):
                yield pb.Chunk(data=body[start : start + CHUNK_BYTES])

        return handle

    async def export(self, _: Requests, context: Context) -> AsyncIterator[pb.Chunk]:
        """A world as it is read from the store: never all of it in memory."""
        async with self._asked("Export", context) as answer:
            if answer.status >= 400:
                await _refuse(answer, context)
            try:
                async for piece in answer.body:
                    yield pb.Chunk(data=piece)
            except MirageError as error:  # a segment that is missing: the answer had begun
                await refuse(context, error, answer.headers[REQUEST_ID_HEADER])

    async def take_in(self, requests: Requests, context: Context) -> pb.Session:
        """A world as its pieces arrive."""

        async def pieces() -> AsyncIterator[bytes]:
            async for data in requests:
                yield message_of(pb.Chunk, data, MAX_HEAD_BYTES).data

        async with self._asked("Import", context, pieces()) as answer:
            return filled(pb.Session, json.loads(await _checked(answer, context)))

    async def watch(self, _: Requests, context: Context) -> AsyncIterator[pb.GenerationEvent]:
        """Server-sent events as messages."""
        async with self._asked("WatchGeneration", context) as answer:
            if answer.status >= 400:
                await _refuse(answer, context)
            async for kind, values in _events(answer.body):
                if kind == "progress":
                    yield pb.GenerationEvent(progress=filled(pb.Generation, values))
                elif kind == "frame":
                    yield pb.GenerationEvent(frame=filled(pb.Frame, _head(values)))
                elif kind in ("error", "goodbye"):
                    await refuse_document(context, values)

    @asynccontextmanager
    async def _asked(
        self, name: str, context: Context, pieces: AsyncIterator[bytes] | None = None
    ) -> AsyncIterator[Answer]:
        """REST's answer to the call."""
        ask = await self._ask(name, context, pieces)
        async with self._answered(ask, context) as answer:
            yield answer

    @asynccontextmanager
    async def _answered(self, ask: Ask, context: Context) -> AsyncIterator[Answer]:
        """The call ends with the answer's request id, however it ends."""
        async with asked(self._app, ask) as answer:
            note_request_id(context, answer.headers[REQUEST_ID_HEADER])
            yield answer

    async def _ask(self, name: str, context: Context, pieces: AsyncIterator[bytes] | None) -> Ask:
        """What REST is asked; what can't be asked goes there, too, to be refused."""
        route, known = ROUTES[name], headers_of(context)
        headers = {one: known[one] for one in PASSED_ON if one in known}
        ask = Ask(route.method, route.path, headers=headers)
        try:
            if not route.is_public:
                caller = await self._gateway.guard.authenticate(known)
                ask = replace(ask, caller=caller)
            if pieces is not None:
                return ask.with_pieces(pieces)
            data = await _read(context)
            translate = partial(self._translated, name, ask, data)
            is_brief = len(data) <= BRIEF_BYTES
            return translate() if is_brief else await asyncio.to_thread(translate)
        except (MirageError, RedisError, HTTPException) as error:
            return replace(ask, caller=error)

    def _translated(self, name: str, ask: Ask, data: bytes) -> Ask:
        """With all that the message says; raises InvalidRequest, HTTPException."""
        route = ROUTES[name]
        kind = GetMessageClass(SERVICE.methods_by_name[name].input_type)
        request = message_of(kind, data, MOST_BYTES[route.rest])
        in_path = _in_path(route, request)
        _check_usable(in_path)
        _check_path(request, self._gateway.settings.max_path_poses)
        values = {field: value for field, value in given(request).items() if field not in in_path}
        quoted = {field: value.replace("/", "%2F") for field, value in in_path.items()}
        respelt = {quoted[field]: value for field, value in in_path.items() if "/" in value}
        spread = [one for one in SPREAD if one in request.DESCRIPTOR.fields_by_name]
        path, whole = route.path.format(**quoted), spread[0] if spread else BODY
        ask = replace(ask, path=path, respelt=respelt, whole=whole)
        return _filled(route, ask, values)


def headers_of(context: Context) -> dict[str, str]:
    """The call's metadata that is text, names in lower case."""
    pairs = context.invocation_metadata() or ()
    return {name: value for name, value in pairs if isinstance(value, str)}


def _in_path(route: Route, request: Message) -> dict[str, str]:
    """The fields that are a part of the address."""
    return {
        field.name: str(getattr(request, field.name))
        for field in request.DESCRIPTOR.fields
        if f"{{{field.name}}}" in route.path
    }


def _check_usable(in_path: Mapping[str, str]) -> None:
    """An empty part of the path would make another address, and one longer than an address would
    stand in logs and answers; raises InvalidRequest.
    """
    if problems := tuple(_unusable(in_path)):
        fields = ", ".join(problem.field for problem in problems)
        raise InvalidRequest(f"These fields can't be used: {fields}.", fields=problems)


def _check_path(request: Message, max_poses: int) -> None:
    if isinstance(request, pb.CreateGenerationRequest):
        check_lists(request.path, max_poses)
    elif isinstance(request, pb.CreateVideoRequest):
        check_length(len(request.poses), max_poses)


def _unusable(in_path: Mapping[str, str]) -> Iterator[FieldProblem]:
    for field, value in in_path.items():
        if not value:
            yield FieldProblem(field, "nothing", "required")
        elif len(value) > MAX_NAME_CHARS:
            allowed = f"at most {MAX_NAME_CHARS} characters"
            yield FieldProblem(field, f"{len(value):,} characters", allowed)


async def _read(context: Context) -> bytes:
    """The message of a call that has one; raises InvalidRequest."""
    data = await context.read()
    if data is aio.EOF:  # type: ignore[attr-defined]
        problem = FieldProblem("message", "nothing", "one message")
        raise InvalidRequest("The call ended before its message.", fields=(problem,))
    return bytes(data)


def _filled(route: Route, ask: Ask, values: dict[str, Any]) -> Ask:
    if "if_version" in values:
        version = {"if-match": f'"{values.pop("if_version")}"'}
        ask = replace(ask, headers={**ask.headers, **version})
    if route.rest == "json":
        return ask.with_json(values.pop("path", {}) | values)
    if route.rest == "form":
        values |= values.pop("observation", {})
        files: dict[str, bytes] = {one: values.pop(one) for one in FILES if one in values}
        values |= values.pop("intrinsics", {})
        for one in ("pose", "poses"):
            if one in values:
                values[one] = json.dumps(values[one])
        return ask.with_form({key: str(value) for key, value in values.items()}, files)
    return replace(ask, query=values)


async def _checked(answer: Answer, context: Context) -> bytes:
    if answer.status >= 400:
        await _refuse(answer, context)
    return await answer.read()


async def _refuse(answer: Answer, context: Context) -> NoReturn:
    text = (await answer.read()).decode()
    for quoted, sent in answer.ask.respelt.items():
        text = text.replace(quoted, sent)
    await refuse_document(context, json.loads(text))


def _shaped(name: str, values: dict[str, Any]) -> dict[str, Any]:
    if name == "ListFrames":
        return values | {"frames": [_head(frame) for frame in values["frames"]]}
    return values


def _head(values: Mapping[str, Any]) -> dict[str, Any]:
    """REST names the place of a picture where a message has the picture itself."""
    return {name: value for name, value in values.items() if name != "image"}


async def _events(body: AsyncIterator[bytes]) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """Server-sent events: (event, its JSON)."""
    text = ""
    async for piece in body:
        text += piece.decode()
        while "\n\n" in text:
            block, _, text = text.partition("\n\n")
            lines = dict(line.partition(": ")[::2] for line in block.splitlines())
            if "data" in lines:
                yield lines.get("event", "message"), json.loads(lines["data"])
