"""Stage 2: a decoder that a critic has looked at, behind the same encoder."""

import tiny
import torch

from worker.train.codec import batches
from worker.train.critic import Critic
from worker.train.detail import DetailConfig, detail_loss, train_detail
from worker.train.loop import RunConfig


def test_the_critic_pulls_the_decoder_and_a_covered_picture_counts(walks):
    codec, _, _ = tiny.modules()
    batch = batches(walks, 2)(torch.Generator().manual_seed(0))
    pulls = []
    for realism in (0.0, 2.0):
        codec.zero_grad()
        critic, generator = Critic(width=8), torch.Generator().manual_seed(1)
        loss, figures = detail_loss(codec, critic, batch, generator, DetailConfig(realism))
        loss.backward()
        gradients = [p.grad for p in codec.decoder.parameters() if p.grad is not None]
        pulls.append(torch.cat([gradient.flatten() for gradient in gradients]))
        assert figures["distance"] > 0 and figures["psnr_moved"] > 0
    assert not torch.allclose(*pulls)


def test_only_the_decoder_learns(walks, tmp_path):
    codec, _, _ = tiny.modules()
    before = {name: value.clone() for name, value in codec.state_dict().items()}
    cfg = RunConfig(minutes=1, num_steps=4, batch_size=2, learning_rate=1e-3, warmup_steps=1)
    progress = train_detail(cfg, codec, walks, tmp_path)
    assert progress.step == 4
    for name, value in codec.state_dict().items():
        assert torch.equal(value, before[name]) != name.startswith("decoder."), name
