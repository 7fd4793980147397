from dataclasses import replace

import pytest
import tiny
import torch

from worker.backbones.base import Condition
from worker.layers import channels_last
from worker.train.critic import Critic
from worker.train.denoiser import batches
from worker.train.footage import Footage
from worker.train.loop import RunConfig
from worker.train.polish import PolishConfig, polish, polish_loss, pulled


class Linear:
    """A critic whose opinion, and whose features, rise equally with every value."""

    def look(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [images, images]

    def praise(self, seen: list[torch.Tensor], invented: torch.Tensor) -> torch.Tensor:
        return seen[0].mean()


@pytest.mark.parametrize(("likeness", "realism"), [(0.0, 0.0), (0.0, 3.0), (2.0, 0.0), (1.0, 2.0)])
def test_features_and_critic_pull_a_share_of_what_pixels_do(likeness, realism):
    fake, real, weight = torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8), torch.ones(1, 8, 8)
    cfg = PolishConfig(likeness=likeness, realism=realism)
    pull, looks, figures = pulled(fake, real, weight, weight, Linear(), cfg)  # type: ignore[arg-type]
    alone = PolishConfig(likeness=0.0, realism=0.0)
    bare, *_ = pulled(fake.detach(), real, weight, weight, Linear(), alone)  # type: ignore[arg-type]
    assert figures["distance"] == pytest.approx(1.0, abs=1e-3)
    assert torch.equal(looks[0], torch.cat([real, fake]))
    assert (pull < 0).all()  # descending it raises every value
    torch.testing.assert_close(pull, (1 + likeness + realism) * bare)


def test_the_loss_pulls_the_denoiser_and_leaves_the_codec(footage: Footage):
    codec, denoiser, _ = tiny.modules()
    codec.requires_grad_(False)
    batch = batches(codec, footage, 2)(torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(2)
    critic = Critic(width=8)
    before = [parameter.clone() for parameter in critic.parameters()]
    loss, figures = polish_loss(denoiser, codec, critic, batch, generator, PolishConfig())
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in denoiser.parameters())
    assert all(parameter.grad is None for parameter in codec.parameters())
    moved = zip(before, critic.parameters(), strict=True)
    assert any(not torch.equal(old, new) for old, new in moved)
    assert figures["distance"] > 0 and 0 < figures["critic"] < 4


def test_what_the_model_made_before_is_not_pulled_to_the_truth(footage: Footage):
    """Covered by its own chunks only: what it is shown is what it should say."""
    codec, _, _ = tiny.modules()
    codec.requires_grad_(False)
    batch = batches(codec, footage, 2)(torch.Generator().manual_seed(1))
    everywhere = torch.ones_like(batch.condition.front.coverage)
    front = replace(batch.condition.front, coverage=everywhere)
    condition = replace(batch.condition, front=front)
    own = replace(batch, condition=condition, known=everywhere < 0, still=everywhere > 0)
    repeating = Repeating()
    cfg = PolishConfig(likeness=0.0, realism=0.0)
    critic, generator = Critic(width=8), torch.Generator().manual_seed(2)
    loss, figures = polish_loss(repeating, codec, critic, own, generator, cfg)  # type: ignore[arg-type]
    loss.backward()
    assert figures["distance"] == figures["unlike"] == figures["latent"] == 0
    assert repeating.change.grad == 0


class Repeating(torch.nn.Module):
    """Says what it is shown, but for what it learns to add."""

    def __init__(self) -> None:
        super().__init__()
        self.change = torch.nn.Parameter(torch.zeros(()))

    def forward(self, noisy: torch.Tensor, level: torch.Tensor, condition: Condition):
        return condition.front.tokens + self.change


def test_polishing_brings_decoded_pictures_nearer_to_the_truth(footage, tmp_path):
    codec, denoiser, head = tiny.modules()
    denoiser = channels_last(denoiser)
    cfg = RunConfig(minutes=1, num_steps=30, batch_size=2, learning_rate=3e-3, log_every=5)
    polish(cfg, denoiser, codec, head, footage, tmp_path)
    rows = (tmp_path / "log.jsonl").read_text().splitlines()
    first, last = (
        float(row.partition('"distance": ')[2].split(",")[0]) for row in rows[:: len(rows) - 1]
    )
    assert last < first
