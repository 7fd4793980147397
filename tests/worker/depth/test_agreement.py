"""How pictures agree at some depth: the compiled kernel, plain torch, and what is the case."""

from __future__ import annotations

import pytest
import torch
from boxes import camera, room_depth
from test_stereo import BOX, painted, sideways
from torch.nn import functional as F

from worker.depth.agreement import (
    HIDDEN,
    MISFIT_SHARE,
    WORST,
    Agreement,
    Comparison,
    comparison,
)
from worker.geometry import Cameras, cat_cameras, pool_depth


def compared(views: Cameras, knows: bool, size: tuple[int, int]) -> tuple[Comparison, torch.Tensor]:
    """The first picture with all others, and its depth."""
    pictures, _ = painted(views)
    depth = F.interpolate(room_depth(views, BOX).float()[:, None], size)[:, 0]
    known = pool_depth(room_depth(views, BOX), (32, 48)) if knows else None
    shown = F.interpolate(pictures, size, mode="area")
    others = list(range(1, len(pictures)))
    return comparison(shown, views.resized(*size), 0, others, depth[0], known, 4.0), depth[0]


def assert_alike(found: Agreement, expected: Agreement) -> None:
    torch.testing.assert_close(found.difference, expected.difference, rtol=0, atol=2e-5)
    torch.testing.assert_close(found.misfit, expected.misfit, rtol=0, atol=2e-6)
    assert (found.seen != expected.seen).float().mean() < 1e-4


@pytest.mark.parametrize("size", [(128, 192), (64, 96), (37, 51)])
@pytest.mark.parametrize("knows", [True, False])
def test_the_kernel_and_plain_torch_agree(size: tuple[int, int], knows: bool) -> None:
    away = camera((0.0, 0.0, 0.0), (0.0, 0.0, -2.0))  # looks the other way
    views = cat_cameras([sideways(0.0, 0.2, 0.4, -1.5), away])
    pair, depth = compared(views, knows, size)
    for factor in (0.02, 0.5, 3.0, 1.1, 1.0):
        found, expected = pair.at(factor * depth), pair.plainly(factor * depth)
        assert_alike(found, expected)
        assert not found.seen[-1].any()
    assert 0 < float(expected.seen.mean()) < 1


def test_threads_share_the_rows() -> None:
    pair, depth = compared(sideways(0.0, 0.2, 0.4), True, (128, 192))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = pair.at(depth)
        torch.set_num_threads(3)
        assert all(map(torch.equal, pair.at(depth), alone))
    finally:
        torch.set_num_threads(threads)


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
