"""What operators see: structured logs with request and session ids, and Prometheus metrics.

How: one ASGI layer gives every request an id (the client's, if it is sane), binds it to the log's
context, counts and times the answer under the route's template, and returns the id in a header.
Each app has its own registry, so that two of them can live in one process.
"""

from __future__ import annotations

import logging
import re
import sys
import time
import uuid
from typing import TextIO

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.tracing import end_request, request_span

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
REQUEST_ID_HEADER = "x-request-id"
HEADER = REQUEST_ID_HEADER.encode()
LIMITS = (
    "sessions", "sessions_per_key", "streams_per_key", "backlog", "rate", "path_poses",
    "body_bytes", "upload_bytes", "image_pixels", "frames_kept",
)  # fmt: skip
LATENCY_BUCKETS_S = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0)


class Metrics:
    """The gateway's own figures; names end in their unit."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "mirage_http_requests",
            "HTTP requests answered",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self.latency_s = Histogram(
            "mirage_http_request_seconds",
            "Time to the last byte of an answer",
            ["method", "route"],
            buckets=LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self.frames = Counter(
            "mirage_frames_delivered", "Frames sent to clients", ["via"], registry=self.registry
        )
        self._frames_via: dict[str, Counter] = {}  # `labels` checks and looks up each time
        self.frame_bytes = Counter(
            "mirage_frame_bytes_delivered", "Encoded bytes of those", registry=self.registry
        )
        self.streams = Gauge(
            "mirage_streams_active",
            "Open streams: WebSocket, gRPC and server-sent events",
            registry=self.registry,
        )
        self.refusals = Counter(
            "mirage_limit_refusals",
            "Requests refused because a limit was reached",
            ["limit"],
            registry=self.registry,
        )
        for limit in LIMITS:
            self.refusals.labels(limit)
        self.sessions = Gauge("mirage_sessions", "Sessions that exist", registry=self.registry)
        self.limits = Gauge(
            "mirage_limit", "What is set: counts, seconds", ["limit"], registry=self.registry
        )
        self.waiting = Gauge(
            "mirage_sessions_waiting",
            "Sessions that wait for a worker, for the sweeper to empty them, to be looked through",
            ["for"],
            registry=self.registry,
        )
        self.workers = Gauge("mirage_workers_alive", "Workers that report", registry=self.registry)
        self.worker_sessions = Gauge(
            "mirage_worker_sessions", "Sessions a worker owns", ["worker"], registry=self.registry
        )
        self.worker_memory_bytes = Gauge(
            "mirage_worker_memory_bytes",
            "Bytes of the worlds a worker holds",
            ["worker"],
            registry=self.registry,
        )

    def refused(self, error: Exception) -> None:
        """Count it, if a limit was the reason."""
        is_large = isinstance(error, HTTPException) and error.status_code == 413
        limit = "body_bytes" if is_large else getattr(error, "limit", "")
        if limit:
            self.refusals.labels(limit).inc()

    def delivered(self, via: str, num_bytes: int) -> None:
        frames = self._frames_via.get(via)
        if frames is None:
            frames = self._frames_via[via] = self.frames.labels(via)
        frames.inc()
        self.frame_bytes.inc(num_bytes)


class Telemetry:
    """ASGI layer: request id, access log, request metrics."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics
        self._log = structlog.get_logger("mirage.access")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        status, started_s, is_http = 0, time.perf_counter(), scope["type"] == "http"
        ended: dict[str, int] = {}

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (HEADER, request_id.encode())]
            await send(message)

        async def send_socket(message: Message) -> None:
            nonlocal status
            if message["type"] == "websocket.accept":
                status = 101
            elif message["type"] == "websocket.http.response.start":
                status = message["status"]
            elif message["type"] == "websocket.close":
                ended["close_code"] = message.get("code", 1000)
            await send(message)

        with (
            structlog.contextvars.bound_contextvars(request_id=request_id),
            request_span(scope["type"], Headers(scope=scope)) as span,
        ):
            try:
                await self._app(scope, receive, send_with_id if is_http else send_socket)
            finally:
                self._record(scope, status, time.perf_counter() - started_s, **ended)
                name = f"{scope.get('method', 'WS')} {_route(scope)}"
                end_request(span, name, status, **{"mirage.request_id": request_id})

    def _record(self, scope: Scope, status: int, elapsed_s: float, **ended: int) -> None:
        route = _route(scope)
        if scope["type"] == "http":
            method = scope["method"] if scope["method"] in METHODS else "other"
            self._metrics.requests.labels(method, route, str(status)).inc()
            self._metrics.latency_s.labels(method, route).observe(elapsed_s)
        self._log.info(
            "request",
            method=scope.get("method", "WS"),
            path=scope["path"],
            status=status,
            elapsed_ms=round(1000 * elapsed_s, 1),
            **ended,
            **scope.get("path_params", {}),
        )


METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to what is stderr at that moment; one that was replaced may be closed."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)  # the parent's binds a stream

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


def configure_logging(level: str) -> None:
    """JSON lines on stderr, or colours on a terminal; the standard library's loggers join in."""
    renderer = (
        structlog.dev.ConsoleRenderer(repr_native_str=True)  # a path may hold escape sequences
        if sys.stderr.isatty()
        else structlog.processors.JSONRenderer()
    )
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = StderrHandler()
    finish: list[structlog.typing.Processor] = [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        structlog.processors.format_exc_info,
        renderer,
    ]
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=finish)
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    logging.getLogger("httpx").setLevel("WARNING")  # it tells the whole address of each webhook


def _route(scope: Scope) -> str:
    path: str = getattr(scope.get("route"), "path", "unmatched")
    return path


def accepted_request_id(given: str | None) -> str:
    """The client's own, if it looks like one; else a new one."""
    return given if given and REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def _request_id(scope: Scope) -> str:
    given = (value.decode("latin-1") for name, value in scope["headers"] if name == HEADER)
    return accepted_request_id(next(given, None))
