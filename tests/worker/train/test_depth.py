"""Stage 2: the likelihood of log depth."""

import json
import math
from dataclasses import replace

import pytest
import tiny
import torch
from torch import Tensor, nn

from worker.train.depth import (
    MAX_RATIO_LOG,
    batches,
    depth_loss,
    ratio,
    rescaled,
    shape_error,
    train_depth,
)
from worker.train.depth_views import views_of
from worker.train.loop import RunConfig


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Fixed(nn.Module):
    """Says the same whatever it is shown."""

    def __init__(self, log_depth: Tensor, log_scale: float = 0.0) -> None:
        super().__init__()
        self.log_depth = nn.Parameter(log_depth)
        self.log_scale = log_scale

    def forward(
        self, latents: Tensor, rays: Tensor, hint: Tensor, told: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        return self.log_depth, torch.full_like(self.log_depth, self.log_scale)


@pytest.fixture(scope="session")
def views(latent_walks, features):
    return views_of(latent_walks, features, seed=0)


@pytest.fixture
def batch(views):
    made = batches(views, 6)(generator())
    made.depth[:, 0] = 0.0
    return made


def truth(batch, factor: float = 1.0) -> Tensor:
    return (factor * batch.depth.clamp(min=1e-3)).log()


def loss_of(batch, log_depth: Tensor, log_scale: float = 0.0) -> float:
    return float(depth_loss(Fixed(log_depth, log_scale), batch, generator())[0].detach())


def test_a_batch_is_latents_rays_and_depth_of_the_same_views(views):
    batch = batches(views, 6)(generator())
    latents, rays, hints, depth = batch.latents, batch.rays, batch.hints, batch.depth
    assert latents.shape == (6, tiny.CHANNELS, 6, 8) and latents.dtype == torch.float32
    assert rays.shape == (6, 2, 6, 8) and depth.shape == hints.shape == (6, 6, 8)
    assert batch.is_seen.any() and not batch.is_seen.all()
    told = zip(batch.half, batch.quarter, batch.is_seen, strict=True)
    for one, ray, cells, (half, quarter, is_seen) in zip(latents, rays, depth, told, strict=True):
        row = int((views.latents.float() == one).flatten(1).all(1).nonzero()[0])
        factor = cells / views.depth[row]  # one for the whole view
        assert factor[cells > 0].std() < 1e-4
        assert torch.equal(views.rays[row], ray)
        assert torch.equal(half, views.half[row].float() * is_seen)
        assert torch.equal(quarter, views.quarter[row].float() * is_seen)


def test_the_truth_costs_least_and_confidence_in_it_pays(batch):
    sure, unsure = loss_of(batch, truth(batch), -3.0), loss_of(batch, truth(batch))
    wrong = loss_of(batch, truth(batch, 1.5), -3.0)
    assert sure < unsure < wrong
    assert loss_of(batch, truth(batch, 1.5)) < wrong  # to be unsure of a wrong depth pays too


def test_the_loss_of_a_known_error(batch):
    """error e^-s + s of the log, with an error of log 1.1 and s = 0.5, + 0.1 in proportion."""
    expected = math.log(1.1) * math.exp(-0.5) + 0.5 + 0.1
    assert loss_of(batch, truth(batch, 1.1), 0.5) == pytest.approx(expected, rel=1e-4)


def test_absrel_is_reported(batch):
    _, figures = depth_loss(Fixed(truth(batch, 1.1)), batch, generator())
    assert figures["absrel"] == pytest.approx(0.1, rel=1e-3)
    batch.hints[:, 0] = 1.0  # now every view has one, on cells without depth
    _, figures = depth_loss(Fixed(truth(batch, 1.1)), batch, generator())
    assert figures["absrel_beside_hint"] == pytest.approx(0.1, rel=1e-3)


def test_half_of_the_views_get_a_hint_that_sets_their_scale(views):
    """Where the hint shows a surface, the depth asked for is the hint's, but for fine structure."""
    batch = batches(views, 8)(generator(3))
    hints, depth = batch.hints, batch.depth
    assert [bool(hint.any()) for hint in hints] == [True] * 4 + [False] * 4
    for shown, asked in zip(hints[:4], depth[:4], strict=True):
        both = (shown > 0) & (asked > 0)
        assert float((shown[both] / asked[both]).median()) == pytest.approx(1, abs=0.02)


def test_each_frame_of_a_hint_gets_its_own_factor():
    source = torch.tensor([[0, 1, 1, 2]], dtype=torch.int8)
    factors = rescaled(torch.tensor([[2.0, 2.0, 4.0, 0.0]]), source, generator()) / 2
    assert factors[0, 1] * 2 == factors[0, 2] and factors[0, 0] != factors[0, 1]
    assert factors[0, 3] == 0  # no surface stays none


def test_shape_is_right_whatever_the_scale():
    true = torch.rand(2, 6, 8, generator=generator())
    everywhere = torch.ones_like(true, dtype=torch.bool)
    assert shape_error(torch.full_like(true, 0.7), everywhere) == 0
    sloped = 0.01 * torch.arange(8).expand(2, 6, 8)
    assert float(shape_error(sloped, everywhere)) > 0.001
    half = everywhere.clone()
    half[..., 4:] = False
    bent = torch.where(half, 0.0, sloped)
    assert shape_error(bent, half) == 0  # cells without depth have no shape


def test_a_hint_that_shows_little_says_nothing():
    shown = torch.zeros(6, 8)
    shown[0, 0] = 9.0
    assert ratio(shown, torch.ones(6, 8)) == 1


def test_cells_without_depth_do_not_count(batch):
    said = truth(batch, 1.1)
    loss = loss_of(batch, said)
    said[:, 0] = 5.0
    assert loss_of(batch, said) == loss


def test_an_absurd_cell_stops_pulling(batch):
    head = Fixed(truth(batch, math.exp(MAX_RATIO_LOG + 1)))
    depth_loss(head, batch, generator())[0].backward()
    assert head.log_depth.grad is not None and not head.log_depth.grad.any()


def test_latents_without_a_picture_are_noisy(batch):
    seen = []

    class Looking(Fixed):
        def forward(
            self, latents: Tensor, rays: Tensor, hint: Tensor, told: tuple[Tensor, Tensor]
        ) -> tuple[Tensor, Tensor]:
            seen.append(latents)
            return super().forward(latents, rays, hint, told)

    for seed in (0, 1):
        depth_loss(Looking(truth(batch)), batch, generator(seed))
    change = (seen[0] - batch.latents).std((1, 2, 3))
    assert torch.equal(change > 0, ~batch.is_seen)
    assert change.max() < 0.3 and not torch.equal(*seen)


def test_training_improves_depth(views, tmp_path):
    cfg = RunConfig(
        minutes=1e9,
        num_steps=40,
        batch_size=8,
        learning_rate=3e-3,
        warmup_steps=4,
        log_every=10,
    )
    head, progress = train_depth(cfg, views, tmp_path, tiny.DEPTH)
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert progress.step == 40 and head.cfg == replace(tiny.DEPTH, sees=(3, 5))
    assert log[-1]["loss"] < log[0]["loss"] - 0.1 and log[-1]["absrel"] < log[0]["absrel"]
