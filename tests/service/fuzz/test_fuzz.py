"""Strangers' bytes: the short form of `make fuzz`; the seeds are good, and faults are seen."""

from __future__ import annotations

import random
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from targets import LIMITS, TARGETS, Target

# (place as a share of the file, what to do there, bytes)
EDITS = st.lists(
    st.tuples(
        st.floats(0, 1), st.sampled_from(["put", "insert", "cut", "double"]), st.binary(max_size=9)
    ),
    min_size=1,
    max_size=6,
)
MAX_MEMORY_BYTES = 40 * LIMITS.max_pixels  # some copies of the largest picture


def edited(data: bytes, edits: list[tuple[float, str, bytes]]) -> bytes:
    """A seed, damaged."""
    for share, what, part in edits:
        at = int(share * len(data))
        keep = {"put": at + len(part), "insert": at, "cut": at + 2 * len(part) + 1, "double": 0}
        data = data[:at] + part + data[keep[what] :]
    return data[: LIMITS.max_bytes]


@pytest.mark.parametrize("name", TARGETS)
def test_the_seeds_are_good(name: str) -> None:
    for seed in TARGETS[name].seeds:
        TARGETS[name].parse(seed)


@pytest.mark.parametrize("name", TARGETS)
def test_no_bytes_get_through_a_parser(name: str) -> None:
    target = TARGETS[name]

    @settings(
        max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(
        st.one_of(st.binary(max_size=200), st.builds(edited, st.sampled_from(target.seeds), EDITS))
    )
    def check(data: bytes) -> None:
        target(data)

    rng = random.Random(name)
    others = [target.changed(rng.choice(target.seeds), rng) for _ in range(300)]
    made = [one for one in others if one is not None]
    assert len(made) > 100 or target.form is None
    for one in made:
        target(one)
    tracemalloc.start()
    try:
        check()
        assert tracemalloc.get_traced_memory()[1] < MAX_MEMORY_BYTES
    finally:
        tracemalloc.stop()


def test_what_is_no_answer_to_a_client_escapes() -> None:
    def broken(data: bytes) -> None:
        data[99]

    with pytest.raises(IndexError):
        Target(broken, ())(b"")
