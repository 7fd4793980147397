"""What operators see of a worker: Prometheus metrics on a port of its own.

Names end in their unit. Everything is kept in a registry of the object, so that several workers can
live in one process. Latencies that cross processes are taken from wall clocks: of the client's
gateway (a request's place in the log) and of this machine.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    make_wsgi_app,
    start_http_server,
)

from service.addresses import cannot_listen
from worker.serving.pulse import Pulse, with_livez
from worker.serving.residency import Residency

STEP_S = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 20.0)
CALL_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0)
SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)
LIVE_DEADLINE_S = 0.1
REAL_TIME_FPS = 10.0
RATES = (0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64)


class Metrics:
    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.pulse = Pulse()

        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(f"mirage_{name}", what, labels, registry=registry)

        def gauge(name: str, what: str, *labels: str) -> Gauge:
            return Gauge(f"mirage_{name}", what, labels, registry=registry)

        def histogram(name: str, what: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"mirage_{name}", what, labels, registry=registry, buckets=buckets)

        self.queue_depth = gauge("queue_depth", "Sessions waiting in the wake queue")
        self.queue_age_s = gauge("queue_age_seconds", "Age of the oldest of them")
        self.sessions = gauge("sessions_owned", "Sessions this worker owns, by state", "state")
        self.batch_size = histogram("batch_sessions", "Sessions in a step", SIZES)
        self.step_s = histogram("step_seconds", "A step, by stage", STEP_S, "stage")
        self.frames = counter("frames", "Frames committed", "kind")
        self.chunks = counter("chunks", "Segments committed", "kind")
        self.pose_to_frame_s = histogram(
            "pose_to_frame_seconds", "From a live pose in the log to its committed frame", STEP_S
        )
        self.first_frame_s = histogram(
            "first_frame_seconds", "From a new session to its first committed frame", STEP_S
        )
        self.chunk_interval_s = histogram(
            "chunk_interval_seconds", "Between commits of one session at work", STEP_S
        )
        self.real_time = histogram(
            "real_time_factor", "Frames per second of a session at work, over 10", RATES
        )
        self.deadline_misses = counter("deadline_misses", "Live frames later than 100 ms")
        self.points = gauge("memory_points", "Points of the worlds at hand")
        self.memory_bytes = gauge("memory_bytes", "Bytes of the worlds at hand", "tier")
        self.memory_budget_bytes = gauge("memory_budget_bytes", "What they may take", "tier")
        self.residents = gauge("resident_worlds", "Worlds at hand", "tier")
        self.evictions = gauge("evictions", "Worlds dropped for others, since the start")
        self.expired = gauge("sessions_expired", "Sessions that expired, since the start")
        self.removed = gauge("objects_removed", "Objects removed from the store, since the start")
        self.restore_s = histogram("restore_seconds", "Restoring a world", STEP_S)
        self.refusals = counter("admission_refusals", "Worlds that fit into no budget")
        self.out_of_memory = counter("out_of_memory", "Steps that ran out of memory")
        self.failures = counter("requests_failed", "Requests that failed")
        self.leases_lost = counter("leases_lost", "Leases that expired under us")
        self.commits_refused = counter("commits_refused", "Commits of a lost lease, refused")
        self.store_s = histogram("store_seconds", "Segment store calls", CALL_S, "call")
        self.redis_s = histogram("redis_seconds", "Redis calls", CALL_S, "call")
        self.errors = counter("dependency_errors", "Failed calls, waited out", "of")

    def serve(self, host: str, port: int) -> int:
        """Answer scrapes on a thread of its own; returns the port (0: a free one was taken).

        Raises ConfigurationError where nobody may listen.
        """
        try:
            server, _ = start_http_server(port, host, self.registry)
        except OSError as error:
            setting = "MIRAGE_WORKER_METRICS_PORT; 0: a free one"
            raise cannot_listen(host, port, setting, error) from error
        server.set_app(with_livez(make_wsgi_app(self.registry), self.pulse))
        return int(server.server_port)

    def store(self, call: str) -> AbstractContextManager[object]:
        return self.store_s.labels(call).time()

    def redis(self, call: str) -> AbstractContextManager[object]:
        return self.redis_s.labels(call).time()

    def queue(self, depth: int, age_s: float) -> None:
        self.queue_depth.set(depth)
        self.queue_age_s.set(age_s)

    def owned(self, states: Mapping[str, int]) -> None:
        for state, count in states.items():
            self.sessions.labels(state).set(count)

    def residency(self, residency: Residency[Any], tier: str) -> None:
        self.points.set(residency.num_points)
        self.memory_bytes.labels(tier).set(residency.num_bytes)
        self.memory_budget_bytes.labels(tier).set(residency.budget_bytes)
        self.residents.labels(tier).set(len(residency))
        self.evictions.set(residency.num_evicted)

    def swept(self, num_expired: int, num_removed: int) -> None:
        self.expired.set(num_expired)
        self.removed.set(num_removed)

    def committed(self, chunks: Sequence[tuple[str, int]]) -> None:
        """The kind and the frames of each; what is of one kind is counted at once."""
        for kind in {kind for kind, _ in chunks}:
            frames = [count for one, count in chunks if one == kind]
            self.chunks.labels(kind).inc(len(frames))
            self.frames.labels(kind).inc(sum(frames))

    def live_frame(self, age_s: float) -> None:
        """A live frame was committed this long after its pose was asked for."""
        self.pose_to_frame_s.observe(age_s)
        if age_s > LIVE_DEADLINE_S:
            self.deadline_misses.inc()

    def interval(self, since_s: float | None, num_frames: int) -> None:
        """A chunk of a session was committed now; the one before at `since_s` (monotonic)."""
        if since_s is None:
            return
        spent_s = max(time.monotonic() - since_s, 1e-6)
        self.chunk_interval_s.observe(spent_s)
        if num_frames:
            self.real_time.observe(num_frames / spent_s / REAL_TIME_FPS)

    def stages(self, timings_ms: Mapping[str, float]) -> None:
        for stage, spent_ms in timings_ms.items():
            self.step_s.labels(stage).observe(spent_ms / 1e3)


def age_s(entry: str) -> float:
    """Seconds since an entry (a stream id: milliseconds of Redis' clock) was appended."""
    return max(0.0, time.time() - int(entry.partition("-")[0]) / 1e3)
