"""How pictures agree at some depth: the compiled kernels, plain torch, and what is the case."""

from __future__ import annotations

import pytest
import torch
from boxes import camera, room_depth
from test_stereo import BOX, painted, sideways
from torch import Tensor
from torch.nn import functional as F

from worker.depth.agreement import HIDDEN, MISFIT_SHARE, WORST, Comparison, comparison
from worker.geometry import Cameras, cat_cameras, pool_depth

FACTORS = torch.tensor([0.02, 0.5, 3.0, 1.1, 1.0])


def compared(views: Cameras, knows: bool, size: tuple[int, int]) -> tuple[Comparison, Tensor]:
    """The first picture with all others, and its depth."""
    pictures, _ = painted(views)
    depth = F.interpolate(room_depth(views, BOX).float()[:, None], size)[:, 0]
    known = pool_depth(room_depth(views, BOX), (32, 48)) if knows else None
    shown = F.interpolate(pictures, size, mode="area")
    others = list(range(1, len(pictures)))
    return comparison(shown, views.resized(*size), 0, others, depth[0], known, 4.0), depth[0]


@pytest.fixture(params=[(128, 192), (64, 96), (39, 52)])
def size(request: pytest.FixtureRequest) -> tuple[int, int]:
    found: tuple[int, int] = request.param
    return found


@pytest.fixture(params=[True, False])
def pair(request: pytest.FixtureRequest, size: tuple[int, int]) -> tuple[Comparison, Tensor]:
    """One of the others looks the other way."""
    away = camera((0.0, 0.0, 0.0), (0.0, 0.0, -2.0))
    return compared(cat_cameras([sideways(0.0, 0.2, 0.4, -1.5), away]), request.param, size)


@pytest.mark.parametrize("margin", [0, 1])
def test_over_cells_the_kernel_and_plain_torch_agree(
    pair: tuple[Comparison, Tensor], margin: int
) -> None:
    one, depth = pair
    grid = (len(depth) // 4, depth.shape[1] // 4) if len(depth) % 4 == 0 else (13, 13)
    found, expected = (
        ask(depth, FACTORS, grid, margin) for ask in (one.over_cells, one.over_cells_plainly)
    )
    for mine, plain in zip(found, expected, strict=True):
        assert mine.shape == (len(one.there), len(FACTORS), *grid)
        off = (mine - plain).abs()
        assert off.mean() < 1e-5 and (off > 1e-4).float().mean() < 1e-3
    costs, shares = found
    assert not shares[-1].any() and not costs[-1].any()
    assert 0 < float(shares.mean()) < 1


def test_over_others_the_kernel_and_plain_torch_agree(pair: tuple[Comparison, Tensor]) -> None:
    one, depth = pair
    depths = FACTORS[:, None, None] * depth
    found, expected = one.over_others(depths), one.over_others_plainly(depths)
    assert found.shape == (len(FACTORS), 3, *depth.shape)
    off = (found - expected).abs()
    assert off.mean() < 1e-5 and (off > 1e-4).float().mean() < 1e-3


def test_at_the_true_depth_pictures_agree() -> None:
    pair, depth = compared(sideways(0.0, 0.2, 0.4), True, (128, 192))
    right, near, far = (pair.at(factor * depth) for factor in (1.0, 0.8, 1.1))
    seen = (right.seen * near.seen * far.seen) > 0
    assert seen.float().mean() > 0.4
    for wrong in (near, far):
        assert right.difference[seen].mean() < 0.3 * wrong.difference[seen].mean()
        assert right.misfit[seen].mean() < 0.3 * wrong.misfit[seen].mean()
        assert float(wrong.difference.max()) <= WORST + 1e-6
        assert float(wrong.misfit.max()) <= MISFIT_SHARE + 1e-6


def test_what_lies_behind_a_known_surface_is_not_seen() -> None:
    pair, depth = compared(sideways(0.0, 0.2), True, (128, 192))
    hidden = pair.at(depth * 1.1 / (1 - HIDDEN))
    looks = pair.at(depth).seen > 0
    tells = looks & (pair.telling == 1)
    assert tells.any() and hidden.seen[tells].mean() < 0.1


def test_without_surfaces_nothing_is_hidden() -> None:
    pair, depth = compared(sideways(0.0, 0.2), False, (128, 192))
    found = pair.at(1.5 * depth)
    assert found.seen.mean() > 0.7 and not found.misfit.any()
