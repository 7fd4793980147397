"""Ablations: each takes away what its name says and nothing else."""

from __future__ import annotations

import pytest
import tiny
import torch
from torch import Tensor

from worker.backbones.base import Condition
from worker.conditioning import condition_on
from worker.engine import Engine
from worker.eval.ablations import Uninformed, score_ablations
from worker.eval.baselines import UnfusedMemory
from worker.eval.protocols import open_world
from worker.eval.scoring import score_walk
from worker.memory.base import empty_readout
from worker.pixels import to_uint8


@pytest.fixture(scope="module")
def scores(engine, loop, walks) -> dict[str, float]:
    other = Engine(tiny.backbone(), engine.cfg)
    return dict(score_ablations(engine, {"untrained": other}, loop, walks, 4))


def test_every_ablation_has_every_figure(scores):
    names = {name.split(".")[1] for name in scores}
    assert names == {"whole", "no_coverage", "no_fusion", "other_untrained"}
    figures = {name.split(".", 2)[2] for name in scores}
    for name in names:
        assert {one for one in figures if f"ablations.{name}.{one}" in scores} == figures
    assert {one.split(".")[0] for one in figures} == {"observed", "imagined"}


def test_the_whole_is_what_the_methods_scored(scores, loop, walks):
    walk = walks["observed.latent"]
    expected = dict(score_walk(loop, walk, walk, "observed"))
    assert scores["ablations.whole.observed.psnr_gt"] == expected["psnr_gt"]


class Listening:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[Condition] = []

    def denoise(self, condition: Condition, noise: Tensor) -> Tensor:
        self.told.append(condition)
        return noise


def test_the_uninformed_denoiser_is_told_that_all_is_covered(engine, loop):
    world, listening = engine.open(0), Listening()
    views = loop.cameras[:2]
    engine.observe(world, to_uint8(loop.images[:1])[0], loop.cameras[:1], loop.depth[0])
    blank = empty_readout(2, engine.backbone.channels, engine.grid, "cpu")
    condition = condition_on([world], [views], [blank], engine.grid)
    Uninformed(listening).denoise(condition, torch.zeros(()))
    (told,) = listening.told
    assert (told.front.coverage == 1).all() and not condition.front.coverage.any()
    assert told.front.tokens is condition.front.tokens and told.recent is condition.recent


def test_without_fusion_the_memory_is_the_unfused_one(engine, loop):
    assert isinstance(open_world(engine, loop, "no-fusion").memory, UnfusedMemory)
