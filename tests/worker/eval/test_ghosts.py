"""Ghosts: what of a moving thing is left in a memory, and where it hid the background."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny
import torch
from torch import Tensor

from worker.engine import Engine
from worker.eval.ghosts import (
    VARIANTS,
    Blind,
    LivelyLoop,
    disoccluded,
    ghost_rate,
    make_lively_loop,
    run,
    score_ghosts,
)
from worker.geometry import Cameras
from worker.pixels import to_uint8
from worker.scenes.scene import HELD_OUT_SEED

SEED = HELD_OUT_SEED + 1


@pytest.fixture(scope="module")
def engine() -> Engine:
    return tiny.engine(deterministic=True)


@pytest.fixture(scope="module")
def lively(engine: Engine) -> LivelyLoop:
    return make_lively_loop(SEED, "orbit", 13, engine)


def test_the_twin_is_the_same_world_without_movers(lively):
    apart = lively.moving
    same = (lively.loop.images - lively.still_images).abs().amax(1) < 1e-6
    assert apart.any() and same.float().mean() > 0.5
    depth = (lively.loop.depth - lively.still_depth).abs() < 1e-6
    assert not depth[apart].any()


def test_the_twin_keeps_what_stands_still_of_things_that_move(engine):
    """Here two doors swing, each about its post."""
    lively = make_lively_loop(HELD_OUT_SEED + 8, "orbit", 13, engine)
    apart = (lively.loop.depth - lively.still_depth).abs() > 1e-6
    assert lively.moving.float().mean() > 0.1
    assert (apart & ~lively.moving).float().mean() < 1e-3


def memory_of(engine: Engine, lively: LivelyLoop, masked: bool):
    world = engine.open(SEED)
    for i in lively.observed:
        image = to_uint8(lively.loop.images[i : i + 1])[0]
        mask = lively.moving_cells[i] if masked else None
        engine.observe(world, image, lively.loop.cameras[i : i + 1], lively.loop.depth[i], mask)
    return world


def test_the_rate_counts_points_written_from_moving_cells(engine, lively):
    truth = lively.moving_cells[lively.observed]
    assert truth.any()
    blind = Engine(Blind(engine.backbone), engine.cfg)
    everything = memory_of(blind, lively, masked=False)
    assert ghost_rate(everything, truth) > 0
    assert ghost_rate(everything, torch.ones_like(truth)) == 1.0
    assert ghost_rate(everything, torch.zeros_like(truth)) == 0.0
    exact = memory_of(blind, lively, masked=True)
    assert ghost_rate(exact, truth) == 0.0
    assert ghost_rate(engine.open(1), truth) == 0.0


def test_background_is_disoccluded_where_a_mover_stood(lively):
    first = disoccluded(lively, 0)
    assert first.shape == lively.moving.shape[1:]
    seen_now = lively.moving[0] & (lively.still_depth[0] > 0)
    assert first[seen_now].float().mean() > 0.95  # the first view is observed itself
    nothing = replace(lively, moving=torch.zeros_like(lively.moving))
    assert not disoccluded(nothing, 0).any()


def test_a_blind_backbone_differs_in_nothing_but_motion(engine):
    blind = Blind(Suspicious(engine.backbone))
    assert not blind.sees_motion and blind.channels == engine.backbone.channels


def test_every_variant_is_measured(engine, lively):
    for variant in VARIANTS:
        figures = dict(run(engine, lively, variant, chunk=3))
        assert 0 <= figures["rate"] <= 1
        assert ("iou" in figures) == (variant == "filter")


class Suspicious(Blind):
    """Says that everything moves."""

    sees_motion = True

    def motion(self, pictures: Tensor, depth: Tensor, cameras: Cameras) -> Tensor:
        return torch.ones_like(depth[:, ::2, ::2])


def test_the_figures_are_named_by_variant(engine, lively):
    figures = dict(score_ghosts(engine, lively, 3))
    assert {name.split(".")[1] for name in figures} == {"none", "client"}  # no weights for motion
    assert figures["dynamics.client.rate"] <= figures["dynamics.none.rate"]
    seeing = Engine(Suspicious(engine.backbone), engine.cfg)
    figures = dict(score_ghosts(seeing, lively, 3))
    assert {name.split(".")[1] for name in figures} == set(VARIANTS)
    assert figures["dynamics.filter.kept"] == 0.0
    assert figures["dynamics.filter.rate"] == 0.0  # all that was observed is taken out again
