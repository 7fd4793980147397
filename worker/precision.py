"""The number format that networks run in: bfloat16 where the hardware multiplies it, else float32.

A CPU without such instructions emulates them: convolutions take eight times as long as in float32
on one that has AVX2 alone (docs/log.md, 2026-11-29).
"""

from __future__ import annotations

import torch

MULTIPLY_BFLOAT16 = ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16")  # torch's words, x86 and ARM


def fast_dtype(device: str) -> torch.dtype:
    """Of the two the one that is faster there."""
    if torch.device(device).type != "cpu":
        return torch.bfloat16
    found = torch.cpu.get_capabilities()
    native = any(found.get(name, False) for name in MULTIPLY_BFLOAT16)
    return torch.bfloat16 if native and torch.backends.mkldnn.is_available() else torch.float32


def autocast(device: str, dtype: torch.dtype | None = None) -> torch.autocast:
    """Operations in this format, or in the device's fast one; nothing is cast for float32."""
    dtype = dtype or fast_dtype(device)
    return torch.autocast(torch.device(device).type, dtype, dtype != torch.float32)
