"""What the service survives, with real processes and real signals.

`python -m bench.survive --json out/survive.json` runs every scenario with reduced counts (about a
minute), `--full` (`make soak`) with those that are claimed. The model costs nothing, so that what
is measured is everything around it; only `batch` uses the shipped one. The exit code says whether
everything that must be zero was zero and, with `--full`, whether all that is claimed of times and
sizes was shown. A worker's lease is short here; failover adds the lease time that is configured
(`failover_s` counts from the lease's end, `pause_s` from the death).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from bench.survival.batches import batches
from bench.survival.branches import forks
from bench.survival.crowds import abandoned, resident, restores
from bench.survival.kills import kills
from bench.survival.pauses import drains, pauses
from bench.survival.restarts import disk_full, gateway_kills, valkey_restarts

Scenario = Callable[[bool], Awaitable[dict[str, Any]]]  # full counts, or reduced ones
SCENARIOS: dict[str, Scenario] = {
    "kill": lambda full: kills(50 if full else 5, 8 if full else 4, 3 if full else 2),
    "pause": lambda full: pauses(10 if full else 1),
    "drain": lambda full: drains(10 if full else 2),
    "gateway": lambda full: gateway_kills(5 if full else 1, 32 if full else 4),
    "valkey": lambda full: valkey_restarts(5 if full else 1),
    "disk": lambda _: disk_full(),
    "resident": lambda full: resident(*((200, 16) if full else (24, 4))),
    "restore": lambda full: restores(33 if full else 8),
    "fork": lambda full: forks(1000 if full else 60),
    "batch": lambda full: asyncio.to_thread(batches, 8, 5 if full else 1),
    # last: a file system that has just removed many thousand files makes new ones slowly
    "abandoned": lambda full: abandoned(*((10_000, 1_000, 200) if full else (240, 80, 20))),
}
MUST_BE_ZERO = (
    "frames_lost",
    "frames_duplicated",
    "frames_differing",
    "worlds_differing",
    "stale_writes",
    "requests_unfinished",
    "errors",
    "unready",
    "files_left",
    "keys_left",
    "segments_copied",
)
# What is claimed of full counts on a quiet machine: line -> scenario, whether its figures show it
HOLDS: dict[str, tuple[str, Callable[[dict[str, Any]], bool]]] = {
    "goes on 2 s after its lease ended": (
        "kill",
        lambda one: one["failovers"] > 0 and one["failover_s"]["max"] <= 2.0,
    ),
    "an owner that slept writes nothing": ("pause", lambda one: one["commits_refused"] > 0),
    "a drain waits for no lease": ("drain", lambda one: one["pause_s"]["max"] < one["lease_s"]),
    "clients reconnect": ("gateway", lambda one: one["connections"] > one["clients"]),
    "a full disk is said": ("disk", lambda one: "No space left" in one["readyz_said"]),
    "memory stays within 5 %": ("abandoned", lambda one: one["rss_worst_growth"] <= 0.05),
    "worlds at rest cost 10 % at most": ("resident", lambda one: one["ratio"] >= 0.9),
    "restored in 100 ms + 1 s/GB": ("restore", lambda one: one["restore_s"] <= one["bound_s"]),
    "forked in 20 ms": ("fork", lambda one: one["fork_s"]["p50"] <= 0.02),
    "a batch changes no bit": (
        "batch",
        lambda one: one["deterministic"]["largest_difference"] == 0,
    ),
}


async def survive(names: list[str], full: bool) -> dict[str, Any]:
    """The figures of these scenarios, and sums over all of them of what must be zero."""
    found: dict[str, Any] = {}
    for name in names:
        started_s = time.monotonic()
        print(f"{name} ...", file=sys.stderr, flush=True)
        figures = await SCENARIOS[name](full)
        found[name] = figures | {"took_s": round(time.monotonic() - started_s, 1)}
        print(json.dumps({name: found[name]}), flush=True)
    sums = {key: sum(one.get(key, 0) for one in found.values()) for key in MUST_BE_ZERO}
    killed = found.get("kill", {})
    head = {"full": full, "num_cpus": os.cpu_count(), "kills": killed.get("kills", 0)}
    head |= {key: killed.get(key) for key in ("lease_s", "failover_s")}
    return head | sums | {"holds": holding(found)} | found


def holding(found: dict[str, Any]) -> dict[str, bool]:
    """Which claims these scenarios show to be true."""
    return {
        line: shows(found[name])
        for line, (name, shows) in HOLDS.items()
        if "skipped" not in found.get(name, {"skipped": "not asked for"})
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.survive", description=__doc__)
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--full", action="store_true", help="the counts that are claimed")
    parser.add_argument("--only", nargs="+", choices=list(SCENARIOS), default=list(SCENARIOS))
    args = parser.parse_args()
    figures = asyncio.run(survive(args.only, args.full))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(figures, indent=2) + "\n")
    wrong = {key: figures[key] for key in MUST_BE_ZERO if figures[key]}
    if wrong:
        print(f"must be zero and is not: {wrong}", file=sys.stderr)
    missed = [line for line, true in figures["holds"].items() if not true]
    if missed:
        print(f"not shown: {', '.join(missed)}", file=sys.stderr)
    return int(bool(wrong or (args.full and missed)))


if __name__ == "__main__":
    sys.exit(main())
