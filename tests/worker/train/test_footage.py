"""What memories are told about depth in training."""

from dataclasses import replace

import pytest
import torch

from worker.depth.refine import Refiner, RefinerConfig
from worker.placed import CLOSER, FINER
from worker.train.footage import drawn_source

FRAMES = [1, 4, 7]


def test_depth_is_the_truth_or_what_the_head_says(footage):
    footage = replace(footage, predicted=1.3 * footage.latents.depth)
    truth, head = (footage.depths(1, FRAMES, source) for source in ("true", "head"))
    assert torch.equal(truth, footage.latents.closer[1, FRAMES].float())
    assert torch.equal(head, footage.predicted[1, FRAMES])


def test_compared_pictures_say_how_far_their_parts_are(footage):
    footage = replace(footage, predicted=1.3 * footage.latents.depth)
    found, truth = (footage.depths(0, FRAMES, source) for source in ("compared", "true"))
    assert found.shape == (len(FRAMES), *(CLOSER * n for n in footage.latents.still.shape[-2:]))
    found = found.repeat_interleave(FINER // CLOSER, 1).repeat_interleave(FINER // CLOSER, 2)
    both = (found > 0) & (truth > 0)
    assert found.shape == truth.shape and both.float().mean() > 0.5
    assert ((found - truth) / truth)[both].abs().median() < 0.15
    moving = ~footage.latents.still[0, FRAMES]
    assert not found[moving.repeat_interleave(FINER, 1).repeat_interleave(FINER, 2)].any()


def test_a_frame_alone_keeps_what_the_head_says(footage):
    footage = replace(footage, predicted=1.3 * footage.latents.depth)
    head, found = (footage.depths(0, [2], source) for source in ("head", "compared"))
    assert torch.equal(head, found)


def test_sources_are_drawn_in_their_shares():
    generator = torch.Generator().manual_seed(0)
    drawn = [drawn_source(0.1, 0.3, generator) for _ in range(2000)]
    shares = {source: drawn.count(source) / len(drawn) for source in ("head", "compared", "true")}
    assert shares == pytest.approx({"head": 0.1, "compared": 0.3, "true": 0.6}, abs=0.05)


def test_edges_are_told_by_a_network_if_there_is_one(footage):
    footage = replace(footage, predicted=1.3 * footage.latents.depth)
    told = replace(footage, refiner=Refiner(RefinerConfig(widths=(8, 8, 8))))
    before, found = (one.depths(0, FRAMES, "compared") for one in (footage, told))
    assert found.shape == footage.latents.closer[0, FRAMES].shape
    scale = FINER // CLOSER
    before = before.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    both = (found > 0) & (before > 0)
    assert (
        both.float().mean() > 0.5 and ((found / before - 1).abs() < 0.2)[both].float().mean() > 0.9
    )
    moving = ~footage.latents.still[0, FRAMES]
    assert not found[moving.repeat_interleave(FINER, 1).repeat_interleave(FINER, 2)].any()
