"""What a worker tells Prometheus, over HTTP."""

from __future__ import annotations

import time

import httpx
from prometheus_client.parser import text_string_to_metric_families

from worker.metrics import Metrics, age_s

EXPECTED = {
    "queue_depth", "queue_age_seconds", "sessions_owned", "batch_sessions", "step_seconds",
    "frames", "chunks", "pose_to_frame_seconds", "first_frame_seconds", "chunk_interval_seconds",
    "real_time_factor", "deadline_misses", "memory_bytes", "resident_worlds", "evictions",
    "restore_seconds", "out_of_memory", "leases_lost", "commits_refused", "store_seconds",
    "redis_seconds", "dependency_errors",
}  # fmt: skip


def test_metrics_are_served_on_a_port_of_their_own() -> None:
    metrics = Metrics()
    port = metrics.serve("127.0.0.1", 0)
    metrics.stages({"denoise": 12.0, "decode": 3.0})
    metrics.live_frame(0.02)
    metrics.live_frame(0.2)
    metrics.interval(time.monotonic() - 0.1, 4)
    metrics.interval(None, 4)
    metrics.owned({"working": 2, "waiting": 0, "resting": 1})
    text = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
    families = {
        one.name.removeprefix("mirage_"): one for one in text_string_to_metric_families(text)
    }
    assert EXPECTED - families.keys() == set()
    assert families["deadline_misses"].samples[0].value == 1
    owned = {one.labels["state"]: one.value for one in families["sessions_owned"].samples}
    assert owned == {"working": 2, "waiting": 0, "resting": 1}
    (count,) = (one for one in families["chunk_interval_seconds"].samples if "count" in one.name)
    assert count.value == 1


def test_the_age_of_an_entry_is_read_off_its_id() -> None:
    second_ago = f"{int(1000 * (time.time() - 1))}-3"
    assert 0.9 < age_s(second_ago) < 5
    assert age_s(f"{int(1000 * (time.time() + 9))}-0") == 0  # clocks may disagree
