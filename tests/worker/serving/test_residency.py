"""Worlds at hand: least recently used go first, pinned ones never, stale ones always."""

from __future__ import annotations

import random

from worker.serving.residency import Residency, Resident


def filled(budget_bytes: int, *names: str) -> Residency[str]:
    residency: Residency[str] = Residency(budget_bytes)
    for name in names:
        residency.unpin(residency.put(name, "tip", f"world {name}", 10))
    return residency


def test_the_least_recently_used_goes_first() -> None:
    residency = filled(30, "a", "b", "c")
    found = residency.find("a", "tip")
    assert found is not None and found.world == "world a"
    residency.put("d", "tip", "world d", 10)
    assert residency.find("b", "tip") is None
    assert residency.find("a", "tip") is found
    assert residency.num_bytes == 30 and len(residency) == 3 and residency.num_evicted == 1


def test_room_is_made_before_a_world_is_brought_and_never_beyond_the_budget() -> None:
    residency = filled(30, "a", "b", "c")
    residency.pin(residency.find("c"))  # type: ignore[arg-type]
    assert residency.can_reserve(20) and not residency.can_reserve(21)
    residency.reserve("d", 20)
    assert len(residency) == 1 and residency.pinned_bytes == 30
    assert not residency.can_reserve(1)
    residency.release("d")
    assert residency.can_reserve(20)


def test_a_reservation_becomes_the_world_it_was_for() -> None:
    residency = filled(30, "a")
    residency.reserve("b", 15)
    residency.put("b", "tip", "world b", 12)
    assert residency.pinned_bytes == 12 and residency.num_bytes == 22


def test_a_pinned_world_stays_whatever_the_budget() -> None:
    residency: Residency[str] = Residency(5)
    a, b = residency.put("a", "tip", "world", 10), residency.put("b", "tip", "world", 10)
    residency.pin(a)
    assert residency.num_bytes == 20
    residency.unpin(b)
    residency.unpin(a)
    assert residency.find("a") is a and residency.find("b") is None
    residency.unpin(a)
    assert residency.num_bytes == 0


def test_a_world_of_another_tip_is_dropped_unless_any_will_do() -> None:
    residency = filled(30, "a")
    assert residency.find("a", None) is not None
    assert residency.find("a", "newer tip") is None
    assert len(residency) == 0


def test_growth_counts() -> None:
    residency = filled(30, "a", "b")
    grown = residency.find("b")
    assert grown is not None
    residency.pin(grown)
    residency.resize("b", grown, 25, 7)
    assert residency.num_bytes == 35 and residency.num_points == 7
    residency.unpin(grown)
    assert len(residency) == 1 and residency.find("b") is grown
    residency.pin(grown)
    residency.drop("b")
    residency.resize("b", grown, 99, 9)  # of a World that is no longer kept
    residency.unpin(grown)
    assert residency.num_bytes == 0 and grown.num_bytes == 99


def test_the_running_total_is_the_sum() -> None:
    rng, residency = random.Random(1), filled(60)
    kept: dict[str, Resident[str]] = {}
    for _ in range(500):
        name = rng.choice("abcdef")
        what = rng.choice(["put", "grow", "drop", "discard", "shed"])
        if what == "put":
            kept[name] = residency.put(name, "tip", "world", rng.randint(1, 30))
            residency.unpin(kept[name])
        elif what == "shed":
            residency.shed()
        elif name in kept:
            if what == "grow":
                residency.resize(name, kept[name], rng.randint(1, 30), 1)
            elif what == "discard":
                residency.discard(name, kept[name])
            else:
                residency.drop(name)
        held = [one for name, one in kept.items() if residency.holds(name, one)]
        assert residency.num_bytes == sum(one.num_bytes for one in held)
        assert len(residency) == len(held)


def test_only_the_very_world_is_discarded() -> None:
    residency = filled(30, "a")
    old = residency.find("a")
    assert old is not None
    residency.discard("a", old)
    new = residency.put("a", "tip", "another", 10)
    residency.discard("a", old)
    assert residency.holds("a", new) and not residency.holds("a", old)
    residency.drop("nobody")


def test_all_that_is_not_pinned_is_shed() -> None:
    residency = filled(30, "a", "b")
    residency.put("c", "tip", "world", 10)
    assert residency.shed() == 20
    assert len(residency) == 1
