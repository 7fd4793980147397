"""Networks run in bfloat16 where that is faster, else in float32."""

import pytest
import torch

from worker import precision
from worker.precision import autocast, duration, fast_dtype, operands

FASTER = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@pytest.fixture(autouse=True)
def _measured_anew():
    precision.fast_on_cpu.cache_clear()
    yield
    precision.fast_on_cpu.cache_clear()


@pytest.mark.parametrize(
    ("bfloat16_s", "chosen"), [(0.1, "bfloat16"), (0.9, "float32"), (2.0, "float32")]
)
def test_what_is_faster_by_more_than_its_rounding_is_worth(monkeypatch, bfloat16_s, chosen):
    def stopwatch(picture, filters):
        assert picture.dtype == filters.dtype
        return bfloat16_s if picture.dtype == torch.bfloat16 else 1.0

    monkeypatch.setattr(precision, "duration", stopwatch)
    assert fast_dtype("cpu") == FASTER[chosen]
    with autocast("cpu"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == FASTER[chosen]


def test_one_slow_moment_decides_nothing(monkeypatch):
    moments = iter([9.0, 9.0, 1.0, 9.0, 9.0, 2.0, 2.0, 2.0, 2.0, 2.0])
    monkeypatch.setattr(precision, "duration", lambda *_: next(moments))
    assert fast_dtype("cpu") == torch.float32
    assert fast_dtype("cpu") == torch.float32  # and it is asked once


def test_the_clock_agrees_with_a_longer_look():
    def median_s(dtype):
        one = operands(dtype)
        return sorted(duration(*one) for _ in range(31))[15]

    ratio = median_s(torch.float32) / median_s(torch.bfloat16)
    if not 0.8 < ratio < 2:  # beside other work medians wander
        assert fast_dtype("cpu") == (torch.bfloat16 if ratio >= 2 else torch.float32)


def test_a_gpu_multiplies_it():
    assert fast_dtype("cuda") == fast_dtype("cuda:1") == torch.bfloat16
