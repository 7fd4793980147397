"""Worlds at hand: least recently used go first, pinned ones never, stale ones always."""

from __future__ import annotations

from worker.residency import Residency


def filled(budget_bytes: int, *names: str) -> Residency[str]:
    residency: Residency[str] = Residency(budget_bytes)
    for name in names:
        residency.put(name, "tip", f"world {name}", 10, pinned=False)
    return residency


def test_the_least_recently_used_goes_first() -> None:
    residency = filled(30, "a", "b", "c")
    assert residency.pin("a", "tip") == "world a"
    residency.unpin(["a"])
    residency.put("d", "tip", "world d", 10, pinned=False)
    assert residency.pin("b", "tip") is None
    assert residency.pin("a", "tip") == "world a"
    assert residency.num_bytes == 30 and len(residency) == 3


def test_a_world_in_a_step_stays_whatever_the_budget() -> None:
    residency: Residency[str] = Residency(5)
    residency.put("a", "tip", "world", 10, pinned=True)
    residency.put("b", "tip", "world", 10, pinned=True)
    assert residency.num_bytes == 20
    residency.unpin(["a"])
    assert residency.num_bytes == 10 and residency.pin("b", "tip") == "world"


def test_a_world_of_another_tip_is_dropped() -> None:
    residency = filled(30, "a")
    assert residency.pin("a", "newer tip") is None
    assert len(residency) == 0


def test_growth_counts() -> None:
    residency = filled(30, "a", "b")
    residency.put("b", "tip 2", "world b", 25, pinned=False)
    assert len(residency) == 1 and residency.num_bytes == 25
    assert residency.pin("b", "tip 2") == "world b"


def test_dropping_what_is_not_there_is_harmless() -> None:
    residency = filled(30)
    residency.drop("nobody")
    residency.unpin(["nobody"])
    assert residency.num_bytes == 0
