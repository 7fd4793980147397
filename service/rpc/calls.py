"""The unary calls of mirage.v1.World: which REST endpoint each is, and how its fields travel.

A request's fields fill the path's placeholders; the others go into the query, the JSON body or the
form. The answer's JSON fills the message of the same fields. What is not one to one stands below
the table.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, NoReturn

from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from starlette.types import ASGIApp

from service.convert import filled, given
from service.errors import FieldProblem, InvalidRequest, MirageError
from service.limits import MAX_NAME_CHARS
from service.rest.findings import BODY
from service.rpc.inside import Answer, Ask, asked
from service.rpc.problems import note_request_id, refuse, refuse_document
from service.telemetry import REQUEST_ID_HEADER, accepted_request_id
from service.wire import world_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["World"]
PASSED_ON = ("authorization", REQUEST_ID_HEADER, "idempotency-key", "traceparent")
SESSION = "/v1/sessions/{session}"
FILES = ("image", "depth", "mask", "input_reference")
SPREAD = ("path", "observation")  # messages whose fields are REST's own
CHUNK_BYTES = 1 << 18

Context = Any  # grpc.aio.ServicerContext; its stubs are generic in types that handlers don't share


@dataclass(frozen=True)
class Route:
    method: str
    path: str
    rest: Literal["query", "json", "form"] = "query"  # where fields that are not in the path go


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
    "ListSamples": Route("GET", "/v1/samples"),
    "GetSamplePicture": Route("GET", "/v1/samples/{name}.png"),
}


class Calls:
    """Handlers by name of the call."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    def unary(self, name: str) -> Callable[[Message, Context], Any]:
        """One request, one answer."""
        answers = GetMessageClass(SERVICE.methods_by_name[name].output_type)

        async def handle(request: Message, context: Context) -> Message:
            async with self._asked(name, request, context) as answer:
                body = await _checked(answer, context)
            if answers is pb.Chunk:
                return pb.Chunk(data=body)
            return filled(answers, _shaped(name, json.loads(body))) if body else answers()

        return self._frame if name == "GetFrame" else handle

    async def _frame(self, request: Message, context: Context) -> Message:
        """What is said of a frame, and its picture."""
        assert isinstance(request, pb.GetFrameRequest)
        before = pb.ListFramesRequest(session=request.session, after=request.frame - 1, limit=1)
        async with self._asked("GetFrame", request, context) as answer:
            image = await _checked(answer, context)
        async with self._asked("ListFrames", before, context) as answer:
            heads = json.loads(await _checked(answer, context))["frames"]
        frame = filled(pb.Frame, _head(heads[0]))
        frame.image = image
        return frame

    def file(self, name: str) -> Callable[[Message, Context], AsyncIterator[pb.Chunk]]:
        """One request, a file in pieces."""

        async def handle(request: Message, context: Context) -> AsyncIterator[pb.Chunk]:
            async with self._asked(name, request, context) as answer:
                body = await _checked(answer, context)
            for start in range(0, len(body), CHUNK_BYTES):
                yield pb.Chunk(data=body[start : start + CHUNK_BYTES])

        return handle

    async def export(self, request: pb.ExportRequest, context: Context) -> AsyncIterator[pb.Chunk]:
        """A world as it is read from the store: never all of it in memory."""
        async with self._asked("Export", request, context) as answer:
            if answer.status >= 400:
                await _refuse(answer, context)
            try:
                async for piece in answer.body:
                    yield pb.Chunk(data=piece)
            except MirageError as error:  # a segment that is missing: the answer had begun
                await refuse(context, error, answer.headers[REQUEST_ID_HEADER])

    async def take_in(self, requests: AsyncIterator[pb.Chunk], context: Context) -> pb.Session:
        """A world as its pieces arrive."""

        async def pieces() -> AsyncIterator[bytes]:
            async for chunk in requests:
                yield chunk.data

        async with self._asked("Import", pb.Chunk(), context, pieces()) as answer:
            return filled(pb.Session, json.loads(await _checked(answer, context)))

    async def watch(
        self, request: pb.WatchGenerationRequest, context: Context
    ) -> AsyncIterator[pb.GenerationEvent]:
        """Server-sent events as messages."""
        async with self._asked("WatchGeneration", request, context) as answer:
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
        self,
        name: str,
        request: Message,
        context: Context,
        pieces: AsyncIterator[bytes] | None = None,
    ) -> AsyncIterator[Answer]:
        """REST's answer; the call ends with its request id, however it ends."""
        ask = replace(await _ask(name, request, context), pieces=pieces)
        async with asked(self._app, ask) as answer:
            note_request_id(context, answer.headers[REQUEST_ID_HEADER])
            yield answer


def headers_of(context: Context) -> dict[str, str]:
    """The call's metadata that is text, names in lower case."""
    pairs = context.invocation_metadata() or ()
    return {name: value for name, value in pairs if isinstance(value, str)}


async def _ask(name: str, request: Message, context: Context) -> Ask:
    """Ends the call if a field of the path is empty, which would be another address, or longer than
    an address: it stands in logs and answers.
    """
    route, known = ROUTES[name], headers_of(context)
    in_path = _in_path(route, request)
    if problems := tuple(_unusable(in_path)):
        fields = ", ".join(problem.field for problem in problems)
        error = InvalidRequest(f"These fields can't be used: {fields}.", fields=problems)
        await refuse(context, error, accepted_request_id(known.get(REQUEST_ID_HEADER)))
    values = {field: value for field, value in given(request).items() if field not in in_path}
    quoted = {field: value.replace("/", "%2F") for field, value in in_path.items()}
    respelt = {quoted[field]: value for field, value in in_path.items() if "/" in value}
    ask = _filled(route, route.path.format(**quoted), values, known)
    spread = [one for one in SPREAD if one in request.DESCRIPTOR.fields_by_name]
    return replace(ask, respelt=respelt, whole=spread[0] if spread else BODY)


def _in_path(route: Route, request: Message) -> dict[str, str]:
    """The fields that are a part of the address."""
    return {
        field.name: str(getattr(request, field.name))
        for field in request.DESCRIPTOR.fields
        if f"{{{field.name}}}" in route.path
    }


def _unusable(in_path: Mapping[str, str]) -> Iterator[FieldProblem]:
    for field, value in in_path.items():
        if not value:
            yield FieldProblem(field, "nothing", "required")
        elif len(value) > MAX_NAME_CHARS:
            allowed = f"at most {MAX_NAME_CHARS} characters"
            yield FieldProblem(field, f"{len(value):,} characters", allowed)


def _filled(route: Route, path: str, values: dict[str, Any], known: Mapping[str, str]) -> Ask:
    headers = {one: known[one] for one in PASSED_ON if one in known}
    if "if_version" in values:
        headers["if-match"] = f'"{values.pop("if_version")}"'
    if route.rest == "json":
        return Ask(route.method, path, json=values.pop("path", {}) | values, headers=headers)
    if route.rest == "form":
        values |= values.pop("observation", {})
        files: dict[str, bytes] = {one: values.pop(one) for one in FILES if one in values}
        values |= values.pop("intrinsics", {})
        for one in ("pose", "poses"):
            if one in values:
                values[one] = json.dumps(values[one])
        form = {key: str(value) for key, value in values.items()}
        return Ask(route.method, path, form=form, files=files, headers=headers)
    return Ask(route.method, path, query=values, headers=headers)


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
