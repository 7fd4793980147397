"""Traces arrive at a collector: one trace from a request to the steps of another process."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from uploads_made import png

from bench.noop import start_worker
from service.control.plane import ControlPlane
from service.local.embedded import free_port
from service.local.stack import environment
from service.settings import Settings
from service.tracing import current_parent

Found = list[tuple[str, Span]]  # service, span


@pytest.fixture
def collector() -> Iterator[tuple[str, Found]]:
    """What an OpenTelemetry collector does for us: takes spans over HTTP."""
    found: Found = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            for one in ExportTraceServiceRequest.FromString(body).resource_spans:
                names = {a.key: a.value.string_value for a in one.resource.attributes}
                spans = [span for scope in one.scope_spans for span in scope.spans]
                found.extend((names["service.name"], span) for span in spans)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", found
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.timeout(300)
async def test_from_a_clients_request_to_a_workers_step(
    settings: Settings, control: ControlPlane, collector: tuple[str, Found]
) -> None:
    endpoint, found = collector
    traced = settings.model_copy(
        update={"otlp_endpoint": endpoint, "port": free_port(), "lease_s": 20.0}
    )
    worker = start_worker(traced)
    gateway = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "service.cli", "gateway"), env=environment(traced)
    )
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    headers = {"traceparent": f"00-{trace_id}-b7ad6b7169203331-01"}
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{traced.port}") as http:
            async with asyncio.timeout(200):
                while True:
                    try:
                        await http.get("/livez")
                        break
                    except httpx.TransportError:
                        await asyncio.sleep(0.1)
                made = await http.post("/v1/sessions", files={"image": png()})
                url = f"/v1/sessions/{made.json()['id']}/generations"
                body = {"actions": [{"forward_m": 0.5}]}
                walk = await http.post(url, json=body, headers=headers)
                events = await http.get(f"{walk.headers['location']}/events", timeout=60)
                assert '"state":"done"' in events.text
    finally:
        gateway.terminate()
        await gateway.wait()
        worker.terminate()
        await asyncio.to_thread(worker.join, 20)
    ours = [(name, span) for name, span in found if span.trace_id.hex() == trace_id]
    requests = [span for name, span in ours if name == "mirage-gateway"]
    steps = [span for name, span in ours if name == "mirage-worker"]
    served = {span.name for span in requests if span.kind == Span.SPAN_KIND_SERVER}
    assert served == {"POST /v1/sessions/{session_id}/generations"}  # FastAPI's own among them
    assert steps and {span.name for span in steps} == {"step"}
    assert {span.parent_span_id for span in steps} <= {span.span_id for span in requests}
    assert all(span.end_time_unix_nano > span.start_time_unix_nano for span in steps)


def test_nothing_is_recorded_without_an_endpoint() -> None:
    assert current_parent() == ""
