"""What tells where surfaces end: what it is told, and what is made of its answer."""

from __future__ import annotations

import pytest
import torch
from boxes import room_depth
from test_stereo import BOX, GRID, painted, sideways, sure
from torch import Tensor

from worker.depth.refine import (
    NUM_MEASURED,
    NUM_OFFERS,
    NUM_PLANES,
    STEPS,
    Refiner,
    RefinerConfig,
    chosen,
    evidence,
    measured,
    offered,
    refined,
)
from worker.depth.stereo import sweep_depths
from worker.geometry import Cameras, pool_depth, sharp_enlarged
from worker.placed import CLOSER, FINER

PARTS = (FINER * GRID[0], FINER * GRID[1])
SMALL = RefinerConfig(pixels=3 * (128 // PARTS[0]) ** 2, widths=(8, 8, 8))


@pytest.fixture(scope="module")
def scene() -> tuple[Tensor, Cameras, Tensor, Tensor]:
    """Pictures, cameras, depth of quarters and of cells."""
    views = sideways(0.0, 0.2, 0.4)
    pictures, truth = painted(views)
    closer = pool_depth(room_depth(views, BOX), (CLOSER * GRID[0], CLOSER * GRID[1]))
    return pictures, views, closer, truth


def test_offers_are_what_was_found_around(scene):
    _, _, closer, truth = scene
    offers = offered(closer[0], truth[0], PARTS)
    found = sharp_enlarged(closer[:1], PARTS)[0].log()
    assert offers.shape == (NUM_OFFERS, *PARTS) and torch.equal(offers[0], found)
    assert torch.equal(offers[-1], sharp_enlarged(truth[:1], PARTS)[0].log())
    for offer, (v, u) in zip(offers[1:], STEPS, strict=False):
        assert offer[20, 40] == found[20 + v, 40 + u]
        assert offer[0, 0] == found[max(v, 0), max(u, 0)]  # beyond the border lies what is on it


def test_the_true_depth_explains_the_other_pictures_best(scene):
    pictures, views, closer, _ = scene
    parts = torch.nn.functional.interpolate(pictures, PARTS, mode="area")
    right = sharp_enlarged(closer[1:2], PARTS)[0]
    offers = torch.stack([right, 1.2 * right, 0.8 * right])
    planes = measured(parts, views.resized(*PARTS), closer, 1, offers)
    difference, misfit, share = planes[: 3 * NUM_MEASURED].unflatten(0, (3, -1)).unbind(1)
    seen = share.amin(0) == 1
    assert seen.float().mean() > 0.3 and planes.shape == (3 * NUM_MEASURED + 1, *PARTS)
    for wrong in (1, 2):
        assert (difference[0] < difference[wrong])[seen].float().mean() > 0.9
        assert (misfit[0] < misfit[wrong])[seen].float().mean() > 0.9
    assert 0 <= float(difference.min()) and float(difference.max()) <= 1


def test_evidence_is_of_every_picture(scene):
    told = evidence(*scene)
    assert told.offers.shape == (3, NUM_OFFERS, *PARTS)
    assert told.planes.shape == (3, NUM_PLANES, *PARTS)
    assert told.planes.isfinite().all()


def test_two_surfaces_are_never_blended():
    offers = torch.tensor([1.0, 1.04, 2.0])[None, :, None, None].log()
    logits = torch.tensor([0.0, 0.0, 0.1])[None, :, None, None]
    none = torch.zeros(1, 1, 1)
    assert chosen(offers, logits, none).item() == pytest.approx(2.0)
    assert chosen(offers, -logits, none).item() == pytest.approx(1.04**0.5)
    assert chosen(offers, logits, none + 0.05).item() == pytest.approx(2.0 * 1.0513, rel=1e-3)


def test_an_untrained_network_keeps_what_was_found(scene):
    torch.manual_seed(0)
    found = refined(Refiner(SMALL), *scene)
    before = sharp_enlarged(scene[2], PARTS)
    assert found.shape == (3, *PARTS) and not found.requires_grad
    assert ((found / before - 1).abs() < 0.1).float().mean() > 0.9


def test_sweeps_end_with_it(scene):
    """It is given what they found, and where pictures contradict each other its word is lost."""
    pictures, views, _, truth = scene
    given = []

    def refine(pictures: Tensor, cameras: Cameras, closer: Tensor, rough: Tensor) -> Tensor:
        given.append((closer, rough))
        told = sharp_enlarged(closer, PARTS).clone()
        told[1, :FINER, :FINER] *= 3  # one cell, which no other picture then agrees with
        return told

    prior, share = (0.8 * truth, sure().expand_as(truth))
    alone, _, before = sweep_depths(pictures, views, prior, share)
    depth, _, parts = sweep_depths(pictures, views, prior, share, refine=refine)
    ((closer, rough),) = given
    assert rough.shape == truth.shape
    assert torch.equal(torch.where(before > 0, closer, 0.0), before)
    assert parts.shape == (3, *PARTS) and torch.equal(depth[0] > 0, alone[0] > 0)
    assert alone[1, 0, 0] > 0 and not depth[1, 0, 0]
    assert not parts[1, :FINER, :FINER].any()
