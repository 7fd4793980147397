"""Networks run in bfloat16 where it is multiplied by the hardware, else in float32."""

import pytest
import torch

from worker.precision import autocast, fast_dtype


@pytest.mark.parametrize("has", ["amx_bf16", "avx512_bf16", "bf16", "sve_bf16"])
def test_bfloat16_where_the_cpu_multiplies_it(monkeypatch, has):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, has: True})
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert fast_dtype("cpu") == torch.bfloat16
    with autocast("cpu"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert fast_dtype("cpu") == torch.float32


def test_float32_where_it_would_be_emulated(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": False})
    assert fast_dtype("cpu") == torch.float32
    with autocast("cpu"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_a_gpu_multiplies_it():
    assert fast_dtype("cuda") == fast_dtype("cuda:1") == torch.bfloat16
