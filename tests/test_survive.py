"""The scenarios of `bench.survive` with reduced counts: processes die, sleep, leave, come back, and
no client notices more than a pause. `make soak` runs the full counts.
"""

from __future__ import annotations

from typing import Any

import pytest

from bench.survival.crowds import abandoned, resident, restores
from bench.survival.kills import kills
from bench.survival.pauses import drains, pauses
from bench.survival.restarts import disk_full, gateway_kills, valkey_restarts
from bench.survival.walks import stale_writes
from bench.survive import MUST_BE_ZERO

pytestmark = pytest.mark.timeout(300)  # seconds when the machine is quiet


def assert_nothing_was_lost(figures: dict[str, Any]) -> None:
    assert {key: figures[key] for key in MUST_BE_ZERO if figures.get(key)} == {}, figures


async def test_killed_workers_are_replaced_and_worlds_stay_what_they_were() -> None:
    figures = await kills(4, num_sessions=3, num_workers=2, seed=2)
    assert_nothing_was_lost(figures)
    assert figures["kills"] == 4 and figures["failovers"] > 0


async def test_an_owner_that_slept_past_its_lease_writes_nothing() -> None:
    figures = await pauses(1, num_sessions=2)
    assert_nothing_was_lost(figures)
    assert figures["commits_refused"] > 0


async def test_a_worker_told_to_leave_hands_over_without_waiting_for_a_lease() -> None:
    figures = await drains(1, num_sessions=2, lease_s=30.0)
    assert_nothing_was_lost(figures)
    assert figures["pause_s"]["max"] < 25  # of a lease of 30 s: nobody waited for its end


async def test_clients_come_back_to_a_gateway_that_was_killed() -> None:
    figures = await gateway_kills(1, num_clients=3)
    assert_nothing_was_lost(figures)
    assert figures["connections"] > figures["clients"]


async def test_a_valkey_that_was_killed_loses_nothing_acknowledged() -> None:
    assert_nothing_was_lost(await valkey_restarts(1, num_sessions=2))


async def test_a_full_disk_is_said_and_waited_out() -> None:
    figures = await disk_full()
    if "skipped" in figures:
        pytest.skip(figures["skipped"])
    assert_nothing_was_lost(figures)
    assert "No space left" in figures["readyz_said"], figures
    assert figures["store_errors"] > 0, figures


async def test_abandoned_sessions_leave_nothing() -> None:
    figures = await abandoned(48, baseline=16, budget=8)
    assert_nothing_was_lost(figures)
    assert figures["evictions"] > 0


async def test_resting_worlds_do_not_slow_down_those_at_work() -> None:
    figures = await resident(12, 2, rounds=2)
    assert figures["resident"] == 12 and figures["ratio"] > 0
    assert figures["cpu_ms_among"] < 3 * figures["cpu_ms_alone"]  # `make soak` compares rates


async def test_an_evicted_world_is_back_in_time() -> None:
    figures = await restores(3)
    assert figures["segments"] == 19 and figures["restore_s"] > 0  # `make soak` asserts the bound


def test_a_segment_of_a_lease_that_ended_would_be_noticed() -> None:
    def segments(*leases: str) -> list[str]:
        return [f"{i:08d}-{lease}-hash" for i, lease in enumerate(leases)]

    assert stale_writes(segments("a.1", "a.1", "b.1", "c.1")) == 0
    assert stale_writes(segments("a.1", "b.1", "a.1", "b.1")) == 2
