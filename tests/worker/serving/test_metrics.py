"""What a worker tells Prometheus, over HTTP."""

from __future__ import annotations

import re
import socket
import time
from pathlib import Path

import httpx
import pytest
from noop_worker import open_session, pose, read_until, serving, until
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from service.control.plane import ControlPlane
from service.control.requests import Generate, LivePose
from service.errors import ConfigurationError
from service.settings import Settings
from service.telemetry import Metrics as GatewayMetrics
from worker.serving.metrics import Metrics, age_s

DOCS = Path(__file__).parents[3] / "docs" / "survival.md"
AT_REST = {  # what a walk without trouble leaves at zero
    "queue_depth", "queue_age_seconds", "evictions", "deadline_misses", "admission_refusals",
    "out_of_memory", "requests_failed", "leases_lost", "commits_refused", "dependency_errors",
    "sessions_expired", "objects_removed",
}  # fmt: skip


def families(metrics: Metrics) -> dict[str, Metric]:
    return {one.name.removeprefix("mirage_"): one for one in metrics.registry.collect()}


def test_the_manual_names_every_metric_and_no_other() -> None:
    rows = re.findall(r"^\| (`.*?`) \|", DOCS.read_text(), re.M)
    named = {
        re.sub(r"\{.*|_total", "", name) for row in rows for name in re.findall(r"`(.+?)`", row)
    }
    theirs = {one.name.removeprefix("mirage_") for one in GatewayMetrics().registry.collect()}
    assert families(Metrics()).keys() | theirs == named


async def test_a_walk_moves_every_figure(control: ControlPlane, settings: Settings) -> None:
    session = await open_session(control)
    async with serving(control, settings) as worker:
        await control.requests.append(session.id, Generate(poses=[pose(i) for i in range(8)]))
        await read_until(control, session.id, 8)
        await control.requests.append_live(session.id, LivePose(pose=pose(9)))
        await read_until(control, session.id, 9)

        async def told() -> bool:
            return families(worker.metrics)["memory_points"].samples[0].value > 0

        await until(told)  # with a heartbeat
        found = families(worker.metrics)
    still = {name for name, one in found.items() if not any(x.value for x in one.samples)}
    assert still <= AT_REST | {"sessions_owned"}, still - AT_REST  # it may be released by now
    stages = {one.labels["stage"] for one in found["step_seconds"].samples}
    assert {"denoise", "decode", "depth", "read", "write"} <= stages
    calls = {one.labels["call"] for one in found["store_seconds"].samples}
    assert calls == {"put", "get"}
    asked = {one.labels["call"] for one in found["redis_seconds"].samples}
    assert asked == {"load", "commit", "renew"}


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
    served = {one.name.removeprefix("mirage_"): one for one in text_string_to_metric_families(text)}
    assert families(metrics).keys() <= served.keys()  # which has when each was made as well
    assert served["deadline_misses"].samples[0].value == 1
    owned = {one.labels["state"]: one.value for one in served["sessions_owned"].samples}
    assert owned == {"working": 2, "waiting": 0, "resting": 1}
    (count,) = (one for one in served["chunk_interval_seconds"].samples if "count" in one.name)
    assert count.value == 1


def test_a_port_that_is_taken_is_named_with_its_setting() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"port {port} .*MIRAGE_WORKER_METRICS_PORT"):
            Metrics().serve("127.0.0.1", port)


def test_the_age_of_an_entry_is_read_off_its_id() -> None:
    second_ago = f"{int(1000 * (time.time() - 1))}-3"
    assert 0.9 < age_s(second_ago) < 5
    assert age_s(f"{int(1000 * (time.time() + 9))}-0") == 0  # clocks may disagree
