"""The benchmark of the service runs as it stands, over every transport, and loses nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
ARGS = "--sessions 3 --rates 4 --duration-s 0.5 --warm-up-s 0.3 --all".split()
TRANSPORTS = ("websocket", "grpc")


def test_a_short_run_reports_every_figure(tmp_path: Path) -> None:
    output = tmp_path / "gateway.json"
    command = [sys.executable, "-m", "bench.gateway", "--json", str(output), *ARGS]
    command += ["--transports", *TRANSPORTS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(output.read_text())
    for transport in TRANSPORTS:
        run, *_ = report[transport]["runs"]  # lower rates follow where the bar does not hold
        assert run["errors"] == run["unordered"] == 0, run["first_error"]
        assert 0 < run["p50_ms"] <= run["p99_ms"] and run["delivered"] > 0
        assert set(run["cpu_ms_per_frame"]) == {"client", "gateway", "worker", "valkey", "all"}
        assert report[f"over_bare_{transport}"]["p50"] > 0
    assert report["rest"]["creates_per_s"] > 0 and report["segment_bytes"] > 0
