"""Time per stage."""

import time

from worker.clock import Clock


def test_a_stage_takes_as_long_as_it_takes_and_adds_up():
    clock = Clock()
    for _ in range(2):
        with clock("sleep"):
            time.sleep(0.02)
    with clock("nothing"):
        pass
    assert list(clock.timings_ms) == ["sleep", "nothing"]
    assert 40 <= clock.timings_ms["sleep"] < 2000
    assert 0 <= clock.timings_ms["nothing"] < clock.timings_ms["sleep"]
