import pytest
import tiny
import torch

from worker.layers import channels_last
from worker.train.critic import Critic
from worker.train.denoiser import batches
from worker.train.latents import LatentWalks
from worker.train.loop import RunConfig
from worker.train.polish import PolishConfig, polish, polish_loss, pulled


class Linear(torch.nn.Module):
    """A critic whose opinion rises equally with every value."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((1, 2, 3))


@pytest.mark.parametrize("realism", [0.0, 3.0])
def test_the_critic_pulls_a_share_of_what_the_truth_does(realism):
    fake, real = torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8)
    pull, distance = pulled(fake, real, Linear(), realism)  # type: ignore[arg-type]
    alone, _ = pulled(fake.detach(), real, Linear(), 0.0)  # type: ignore[arg-type]
    assert distance == pytest.approx(1.0, abs=1e-3)
    assert (pull < 0).all()  # descending it raises every value
    torch.testing.assert_close(pull, (1 + realism) * alone)


def test_the_loss_pulls_the_denoiser_and_leaves_the_codec(latent_walks: LatentWalks):
    codec, denoiser, _ = tiny.modules()
    codec.requires_grad_(False)
    batch = batches(codec, latent_walks, latent_walks.depth, 2)(torch.Generator().manual_seed(1))
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


def test_polishing_brings_decoded_pictures_nearer_to_the_truth(latent_walks, tmp_path):
    codec, denoiser, _ = tiny.modules()
    denoiser = channels_last(denoiser)
    cfg = RunConfig(minutes=1, num_steps=30, batch_size=2, learning_rate=3e-3, log_every=5)
    polish(cfg, denoiser, codec, latent_walks, latent_walks.depth, tmp_path, PolishConfig())
    rows = (tmp_path / "log.jsonl").read_text().splitlines()
    first, last = (
        float(row.partition('"distance": ')[2].split(",")[0]) for row in rows[:: len(rows) - 1]
    )
    assert last < first
