"""Picture and depth metrics, and their mean over scenes with a 95 % interval.

Pictures are (n, 3, H, W) in [-1, 1], masks (n, H, W) bool; every metric returns one value per
picture (n,), NaN where it is undefined.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from worker.codec import psnr

__all__ = ["absrel", "mean_ci95", "psnr", "sharpness", "ssim"]

SSIM_WINDOW = 11
SSIM_SIGMA = 1.5


def ssim(prediction: Tensor, target: Tensor) -> Tensor:
    """Structural similarity on luma, Gaussian window 11, sigma 1.5 (Wang et al. 2004)."""
    weights = prediction.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    x, y = (
        ((image.clamp(-1, 1) + 1) / 2 * weights).sum(1, keepdim=True)
        for image in (prediction, target)
    )
    offsets = torch.arange(SSIM_WINDOW, dtype=x.dtype) - SSIM_WINDOW // 2
    kernel = torch.softmax(-(offsets**2) / (2 * SSIM_SIGMA**2), 0)
    window = kernel[:, None] * kernel[None, :]

    def blur(image: Tensor) -> Tensor:
        return F.conv2d(image, window[None, None])

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    similarity = ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / (
        (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    )
    return similarity.mean((1, 2, 3))


def gradient_energy(images: Tensor) -> Tensor:
    """Mean squared difference of neighbouring pixels, both directions: (n,)."""
    images = images.clamp(-1, 1)
    across = images.diff(dim=-1).square().mean((1, 2, 3))
    return across + images.diff(dim=-2).square().mean((1, 2, 3))


def sharpness(prediction: Tensor, target: Tensor) -> Tensor:
    """Gradient energy over the target's: 1 is as sharp, less is blurred."""
    return gradient_energy(prediction) / gradient_energy(target)


def absrel(prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Mean |d - d*| / d* of depths (n, h, w) over the valid cells: (n,)."""
    error = (prediction - target).abs() / target.clamp(min=1e-6)
    return torch.where(valid, error, 0.0).sum((1, 2)) / valid.sum((1, 2))


def mean_ci95(values: Sequence[float]) -> dict[str, float | None]:
    """Mean over scenes and the half width of its 95 % interval (normal), None where undefined;
    scenes without a value don't count.
    """
    known = torch.tensor([value for value in values if not math.isnan(value)], dtype=torch.float64)
    if len(known) == 0:
        return {"mean": None, "ci95": None, "n": 0}
    ci95 = 1.96 * float(known.std()) / math.sqrt(len(known)) if len(known) > 1 else None
    return {"mean": float(known.mean()), "ci95": ci95, "n": len(known)}
