"""Training of what tells where surfaces end."""

import json
from dataclasses import replace
from functools import partial

import pytest
import tiny
import torch

from worker.depth.head import DepthConfig, DepthHead
from worker.depth.refine import NUM_OFFERS, NUM_PLANES, RefinerConfig
from worker.photographic import pretrained
from worker.placed import CLOSER, FINER, in_quarters
from worker.train.loop import RunConfig
from worker.train.refiner import (
    NUM_FRAMES,
    WORST,
    Batch,
    Compared,
    compare_walks,
    drawn,
    make_batch,
    refiner_loss,
    train_refiner,
)


@pytest.fixture(scope="module")
def found(walks, latent_walks) -> Compared:
    eyes = pretrained("lite1", (14, 20))
    head = DepthHead(DepthConfig(tiny.CHANNELS, (8, 8, 32), 1, sees=(112, 320)))
    return compare_walks(walks, latent_walks, tiny.modules()[0], tiny.randomise(head), eyes)


def test_some_frames_of_each_walk_are_compared(found, walks):
    assert found.pictures.shape == (2, NUM_FRAMES, 48, 64, 3)
    assert found.rough.shape == (2, NUM_FRAMES, 6, 8) and (found.rough > 0).all()
    assert found.closer.shape == (2, NUM_FRAMES, CLOSER * 6, CLOSER * 8)
    assert found.truth.shape == (2, NUM_FRAMES, FINER * 6, FINER * 8)
    assert (found.frames.diff(dim=1) > 0).all()


def test_frames_are_evenly_apart_or_at_random():
    picks = [drawn(12, torch.Generator().manual_seed(seed)) for seed in range(60)]
    assert all(sorted(set(pick)) == pick and len(pick) == NUM_FRAMES for pick in picks)
    even = [pick for pick in picks if pick in ([0, 2, 4, 6, 8, 10], [1, 3, 5, 7, 9, 11])]
    assert 30 < len(even) < 50 and len({tuple(pick) for pick in picks}) > 10


def test_a_batch_is_of_the_last_frames_of_each_sample(found, walks):
    make = partial(make_batch, walks, found, 3)
    batch, same = (make(torch.Generator().manual_seed(1)) for _ in range(2))
    size = (FINER * 6, FINER * 8)
    assert batch.pictures.shape == (3 * NUM_FRAMES, 12, *size)
    assert batch.offers.shape == (3 * NUM_FRAMES, NUM_OFFERS, *size)
    assert batch.planes.shape == (3 * NUM_FRAMES, NUM_PLANES, *size)
    assert all(torch.equal(part, vars(same)[name]) for name, part in vars(batch).items())


@pytest.fixture(scope="module")
def coarse(found) -> Compared:
    """The same, found right but for where surfaces end: a head without training is not."""
    known = found.truth > 0
    truth = torch.where(known, found.truth, 2.0).float()
    rough = truth[..., ::FINER, ::FINER]
    return replace(found, closer=in_quarters(rough), rough=rough, truth=truth.half() * known)


def test_truth_and_offers_are_of_the_same_frames(coarse, walks):
    """In any order, in the mirror or not."""
    batch = make_batch(walks, coarse, 8, torch.Generator().manual_seed(1))
    known = (batch.truth > 0) & (batch.truth.flip(-1) > 0)
    right, wrong = (
        (batch.offers[:, 0].exp() / truth - 1).abs()[known].median()
        for truth in (batch.truth, batch.truth.flip(-1))
    )
    assert right < 0.15 and right < 0.5 * wrong


def fixed(logits, shift):
    return lambda pictures, planes: (logits, shift)


def test_the_loss_is_the_error_to_be_expected():
    offers = torch.tensor([1.0, 1.1, 9.0])[None, :, None, None].log()
    truth = torch.ones(1, 1, 1)
    batch = Batch(torch.zeros(1, 12, 1, 1), offers, torch.zeros(1, 1, 1, 1), truth)
    even, none = torch.zeros(1, 3, 1, 1), torch.zeros(1, 1, 1)
    loss, figures = refiner_loss(fixed(even, none), batch)
    assert loss.item() == pytest.approx((0.0953 + WORST) / 3, rel=1e-2)
    assert figures["before_5"] == 0.0
    sure = torch.tensor([20.0, 0, 0])[None, :, None, None]
    assert refiner_loss(fixed(sure, none), batch)[0] < 1e-4
    assert refiner_loss(fixed(sure, none + 0.03), batch)[0] == pytest.approx(0.03, rel=1e-2)


def test_what_is_not_known_does_not_count():
    offers = torch.tensor([1.0, 1.1])[None, :, None].expand(1, 2, 2)[..., None].log()
    truth = torch.tensor([1.0, 0.0])[None, :, None]
    batch = Batch(torch.zeros(1, 12, 2, 1), offers, torch.zeros(1, 1, 2, 1), truth)
    logits = torch.tensor([[20.0, 0.0], [0.0, 20.0]])[None, ..., None]
    assert refiner_loss(fixed(logits, torch.zeros(1, 2, 1)), batch)[0] < 1e-4


def test_training_finds_better_offers(coarse, walks, tmp_path):
    cfg = RunConfig(
        minutes=1e9, num_steps=80, batch_size=2, learning_rate=3e-3, warmup_steps=4, log_every=20
    )
    small = RefinerConfig(widths=(8, 8, 8))
    refiner, progress = train_refiner(cfg, walks, coarse, tmp_path, small)
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert progress.step == 80 and refiner.cfg == small
    assert log[-1]["loss"] < 0.9 * log[0]["loss"]
    assert log[-1]["after_5"] < log[-1]["before_5"]
