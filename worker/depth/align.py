"""Predicted depth brought to the memory's scale and shift, so that surfaces go on where they were.

A robust line, memory = scale * predicted + shift, is fitted per frame to the cells that the memory
covers (Geman-McClure weights on relative residuals, so that cells that show another surface drop
out). The other cells anchor it: each says, with ANCHOR of a covered one's weight, that the
prediction is right as it is. So frames that overlap much are fitted exactly, a small overlap bends
little of what it says nothing about, and a long chain of frames, each aligned to the one before, is
pulled back to the predictor's own scale. What differs by far more than a predictor's usual error is
another scale, not noise, and anchors no more.

Where overlap is too small or cells disagree, nothing is changed: a wrong line is worse than none.
All frames at once, without a round trip to the host.

Axis legend: t frames, h w the latent grid, n cells.
"""

from __future__ import annotations

import torch
from torch import Tensor

MIN_OVERLAP = 0.08  # of the cells; less says too little about the rest
MAX_SPREAD = 0.25  # median relative residual; more means that prediction and memory disagree
MAX_CHANGE = 4.0  # of any cell's depth, up or down; more is a bad fit
ANCHOR = 0.3  # weight of an uncovered cell's own prediction
ANCHOR_SPREAD = 0.5  # relative change from which on it loses that weight
MIN_SPREAD = 1e-3  # of residuals: smaller ones are rounding
RIDGE = 1e-3  # relative variance of depth below which a shift is told from a scale no more
ROUNDS = 5  # of reweighting; the fit has settled by then


def align_depths(
    predicted: Tensor,  # (t, h, w) z-depth
    readout_depth: Tensor,  # (t, h, w) z-depth of the memory
    coverage: Tensor,  # (t, h, w) in [0, 1]
    centre_m: float | None = None,  # a known distance to the picture's middle, in place of the line
) -> Tensor:
    """(t, h, w): each frame by its own line, or by a known distance."""
    if centre_m is not None:
        return scaled_to_centre(predicted, centre_m)
    scale, shift_m = fit_lines(predicted, readout_depth, coverage)
    return scale[:, None, None] * predicted + shift_m[:, None, None]


def fit_lines(predicted: Tensor, readout_depth: Tensor, coverage: Tensor) -> tuple[Tensor, Tensor]:
    """(t,) scale and (t,) shift in metres; 1 and 0 where the overlap can't be trusted."""
    x, y, trust = (value.flatten(1).double() for value in (predicted, readout_depth, coverage))
    valid = (x > 0) & x.isfinite()
    usable = valid & (trust > 0) & (y > 0) & y.isfinite()
    x = torch.where(valid, x, 1.0)
    y = torch.where(usable, y, x)
    weight = torch.where(usable, trust, ANCHOR) * valid / x.square()
    scale, shift = _median(y / x, usable)[:, None], torch.zeros_like(x[:, :1])
    for _ in range(ROUNDS):
        residual = (scale * x + shift - y) / x
        spread = 2.97 * _median(residual.abs(), usable)[:, None].clamp(min=MIN_SPREAD)
        spread = torch.where(usable, spread, ANCHOR_SPREAD)
        scale, shift = _line(x, y, weight / (1 + (residual / spread).square()).square())
    aligned = scale * x + shift
    spread = _median(((aligned - y) / y).abs(), usable)
    change = torch.where(valid, aligned / x, 1.0)
    sure = (spread <= MAX_SPREAD) & (usable.double().mean(1) >= MIN_OVERLAP)
    sure &= ((change <= MAX_CHANGE) & (change >= 1 / MAX_CHANGE)).all(dim=1)
    scale, shift = (value[:, 0].to(predicted.dtype) for value in (scale, shift))
    return torch.where(sure, scale, 1.0), torch.where(sure, shift, 0.0)


def _line(x: Tensor, y: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """(t, 1) slope and intercept of weighted least squares; a ridge holds the slope of a plane."""
    total = weight.sum(1, keepdim=True)
    mean_x, mean_y = ((weight * value).sum(1, keepdim=True) / total for value in (x, y))
    scale_only = mean_y / mean_x
    variance = (weight * (x - mean_x).square()).sum(1, keepdim=True) / total
    covariance = (weight * (x - mean_x) * (y - mean_y)).sum(1, keepdim=True) / total
    ridge = RIDGE * mean_x.square()
    slope = (covariance + ridge * scale_only) / (variance + ridge)
    return slope, mean_y - slope * mean_x


def _median(values: Tensor, usable: Tensor) -> Tensor:
    """(t,) lower median of the usable values (t, n), infinite where there are none."""
    ordered = torch.where(usable, values, torch.inf).sort(dim=1).values
    middle = (usable.sum(dim=1, keepdim=True) - 1).clamp(min=0) // 2
    return ordered.gather(1, middle)[:, 0]


def scaled_to_centre(predicted: Tensor, centre_m: float) -> Tensor:
    """(t, h, w) metres: the prediction times one scale, so that the median of the middle third of
    the picture is `centre_m` away, or as it is if nothing is known there. What a client knows of a
    picture without depth is one distance.
    """
    h, w = predicted.shape[-2:]
    middle = predicted[..., h // 3 : h - h // 3, w // 3 : w - w // 3]
    known = middle[(middle > 0) & middle.isfinite()]
    return predicted * (centre_m / known.median()) if len(known) else predicted
