"""Rectified flow from the memory's readout to the clean latents, with a noise level of its own for
every cell.

The flow does not start from pure noise but from x0 = readout + level * noise: almost the readout
itself where the memory covers a cell, standard noise where it does not (a data-dependent coupling:
Albergo et al., arXiv 2310.03725). So covered cells are repaired and uncovered ones imagined by the
same few steps, and no step adds variance to what is remembered. x_t = (1 - t) x0 + t x1; the
network predicts x1.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

COVERED_LEVEL = 0.1  # noise on a fully covered cell; an uncovered one gets 1

Predict = Callable[[Tensor, Tensor], Tensor]  # (x_t, level_t) -> x1


def start_level(coverage: Tensor) -> Tensor:
    """Noise standard deviation of x0 per cell, shape as coverage (in [0, 1])."""
    return 1.0 + (COVERED_LEVEL - 1.0) * coverage


def source(tokens: Tensor, coverage: Tensor, noise: Tensor) -> Tensor:
    """x0 (b, t, c, h, w) from readout tokens, coverage (b, t, h, w) and standard normal noise."""
    known = tokens * coverage[:, :, None]
    return known + start_level(coverage)[:, :, None] * noise


def sample(
    predict: Predict, tokens: Tensor, coverage: Tensor, noise: Tensor, num_steps: int
) -> Tensor:
    """Integrate from x0 to x1 with num_steps Euler steps; float32 throughout."""
    x = source(tokens, coverage, noise)
    level = start_level(coverage)
    for step in range(num_steps):
        t = step / num_steps
        clean = predict(x, (1.0 - t) * level)
        x = x + (clean - x) / (num_steps - step)
    return x


def interpolate(x0: Tensor, x1: Tensor, t: Tensor) -> Tensor:
    """x_t for t (b,): training's view of the path."""
    weight = t.view(-1, *(1,) * (x0.ndim - 1))
    return torch.lerp(x0, x1, weight)
