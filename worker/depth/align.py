"""Align predicted depth to the memory's, so that scale doesn't drift from chunk to chunk."""

from __future__ import annotations

import torch
from torch import Tensor

MIN_OVERLAP = 0.08  # of the cells; less says too little about the rest
MAX_SPREAD = 0.25  # median absolute deviation of the log ratio; more means that the two disagree


def align_depth(
    predicted: Tensor,  # (..., h, w) z-depth
    readout_depth: Tensor,  # (..., h, w) z-depth of the memory
    coverage: Tensor,  # (..., h, w) 0 or 1
) -> tuple[Tensor, float]:
    """The prediction times one robust scale, and that scale: the median ratio over the covered
    cells.

    Where the overlap is too small, or the ratios disagree, the scale is 1: a wrong scale is worse
    than none.
    """
    usable = (coverage > 0) & (predicted > 0) & (readout_depth > 0)
    usable &= predicted.isfinite() & readout_depth.isfinite()
    if int(usable.sum()) < max(1, MIN_OVERLAP * usable.numel()):
        return predicted, 1.0
    ratio = (readout_depth[usable] / predicted[usable]).double().log()
    middle = ratio.median()
    if float((ratio - middle).abs().median()) > MAX_SPREAD:
        return predicted, 1.0
    scale = float(middle.exp())
    return predicted * scale, scale


def align_depths(
    predicted: Tensor,
    readout_depth: Tensor,
    coverage: Tensor,
    centre_m: float | None = None,
) -> Tensor:
    """(t, h, w): every frame of a chunk aligned by a scale of its own, or to a known distance."""
    if centre_m is not None:
        return scaled_to_centre(predicted, centre_m)
    frames = zip(predicted, readout_depth, coverage, strict=True)
    return torch.stack([align_depth(*frame)[0] for frame in frames])


def scaled_to_centre(predicted: Tensor, centre_m: float) -> Tensor:
    """(t, h, w) metres: the prediction times one scale, so that the median of the middle third of
    the picture is `centre_m` away. What a client knows of a picture without depth is one distance.
    """
    h, w = predicted.shape[-2:]
    middle = predicted[..., h // 3 : h - h // 3, w // 3 : w - w // 3]
    return predicted * (centre_m / middle[middle > 0].median())
