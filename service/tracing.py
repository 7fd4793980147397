"""OpenTelemetry traces, from a request to the steps that answer it, where an endpoint is set.

How: the gateway opens a span per request (or stream) and writes its `traceparent` into what it puts
in the request log; the worker adds a span for each chunk it commits, under that parent. Spans leave
in batches by OTLP over HTTP, in a thread. Without MIRAGE_OTLP_ENDPOINT the SDK is not imported and
nothing is recorded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

CONTEXT = TraceContextTextMapPropagator()
HEADER = "traceparent"
Value = str | int | float


def configure_tracing(endpoint: str, service: str) -> Callable[[], None]:
    """Send this process's spans to `endpoint` (the base URL of an OTLP collector; "" = nowhere).
    Returns what sends the last ones; call it before the process ends."""
    if not endpoint:
        return lambda: None
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=Resource.create({"service.name": service}))
    exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=1000))
    trace.set_tracer_provider(provider)
    return provider.shutdown


@contextmanager
def request_span(name: str, headers: Mapping[str, str]) -> Iterator[Span]:
    """Everything inside belongs to this request, which may belong to a trace of the client's."""
    tracer = trace.get_tracer("mirage")
    with tracer.start_as_current_span(name, CONTEXT.extract(headers), SpanKind.SERVER) as span:
        yield span


def end_request(span: Span, name: str, status: int, **facts: Value) -> None:
    """What is only known at the end."""
    if not span.is_recording():
        return
    span.update_name(name)
    span.set_attributes({"http.response.status_code": status, **facts})
    if status >= 500:
        span.set_status(Status(StatusCode.ERROR))


def current_parent() -> str:
    """The `traceparent` of what is being done now; "" if nothing is recorded."""
    if not trace.get_current_span().is_recording():
        return ""
    carrier: dict[str, str] = {}
    CONTEXT.inject(carrier)
    return carrier[HEADER]


def record_step(parent: str, began_ns: int, stages_ms: Mapping[str, float], **facts: Value) -> None:
    """A chunk that is committed now, made for the request of `parent`; `began_ns` since 1970."""
    if not parent:
        return
    context = CONTEXT.extract({HEADER: parent})
    tracer = trace.get_tracer("mirage")
    known = facts | {f"{name}_ms": value for name, value in stages_ms.items()}
    named = {f"mirage.{name}": value for name, value in known.items()}
    span = tracer.start_span("step", context, start_time=began_ns, attributes=named)
    span.end(time.time_ns())
