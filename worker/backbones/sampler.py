"""Few-step rectified flow for the cells that the memory does not cover; regression for those it
does.

The flow's source is data-dependent (Albergo et al., arXiv 2310.03725): covered cells hold the
readout, uncovered ones standard noise, and only the latter travel: x_t = readout where covered,
else (1 - t) noise + t x1. The network sees each cell's noise level and predicts x1 everywhere, so
one set of weights repairs what is remembered and imagines what is not, and no step adds variance to
a remembered cell. Where everything is covered, nothing travels and every step would compute the
same: one is enough, and exact.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

TIME_POWER = 1.3

Predict = Callable[[Tensor, Tensor], Tensor]  # (x_t, noise level per cell) -> x1


def noise_level(coverage: Tensor, t: Tensor | float) -> Tensor:
    """Standard deviation of the noise left in each cell (b, t, h, w): 1 - t where uncovered, else
    0.
    """
    return torch.where(coverage > 0, 0.0, 1.0 - t)


def interpolate(
    readout: Tensor, coverage: Tensor, noise: Tensor, clean: Tensor, t: Tensor
) -> Tensor:
    """x_t of training: tensors (b, t, c, h, w), coverage (b, t, h, w), t (b,) in [0, 1]."""
    travelled = torch.lerp(noise, clean, t.view(-1, 1, 1, 1, 1))
    return torch.where(coverage[:, :, None] > 0, readout, travelled)


def times(num_steps: int) -> list[float]:
    """Where on the path the network is asked, from 0; denser at the end, where detail forms."""
    return [1.0 - (1.0 - step / num_steps) ** TIME_POWER for step in range(num_steps)]


def sample(
    predict: Predict, readout: Tensor, coverage: Tensor, noise: Tensor, num_steps: int
) -> Tensor:
    """Clean latents (b, t, c, h, w) after num_steps Euler steps, in float32."""
    known = coverage[:, :, None] > 0
    travelled = noise
    schedule = [*times(1 if bool(known.all()) else num_steps), 1.0]
    for t, after in itertools.pairwise(schedule):
        clean = predict(torch.where(known, readout, travelled), noise_level(coverage, t))
        travelled = travelled + (clean - travelled) * (after - t) / (1.0 - t)
    return clean
