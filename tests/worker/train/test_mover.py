"""Stage 4: memories as they are at work, and a mover that alone gets better."""

import pytest
import tiny
import torch

from worker.photographic import pretrained
from worker.placed import FINER
from worker.train.loop import RunConfig
from worker.train.mover import (
    LAST_BLOCKS,
    MAX_CONTEXT,
    NUM_TARGETS,
    batches,
    looking_finer,
    mover_loss,
    plan,
    train_mover,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def make(footage):
    return batches(footage, 2)


def test_targets_are_never_in_the_memory_and_contexts_are_of_all_kinds(footage):
    source = generator()
    plans = [plan(footage.latents, source) for _ in range(400)]
    for part in plans:
        assert len(part.targets) == NUM_TARGETS and not set(part.targets) & set(part.context)
    lengths = {len(part.context) for part in plans}
    assert lengths == set(range(1, MAX_CONTEXT + 1))
    regular = [part for part in plans if set(torch.tensor(part.context).diff().tolist()) == {3}]
    assert 0.2 < len(regular) / len(plans) < 0.5
    assert all(
        part.context[0] % 3 == part.context[1] % 3 for part in plans if part.depth == "compared"
    )
    for depth in ("head", "compared"):
        assert 0 < sum(part.depth == depth for part in plans) < 0.4 * len(plans)
    for name in ("scale_noise", "token_noise", "generated"):
        assert 0 < sum(bool(getattr(part, name)) for part in plans) < 0.4 * len(plans)


def test_a_batch_shows_the_targets_from_a_memory_of_their_walk(make, walks):
    batch, again = make(generator(1)), make(generator(1))
    num, (h, w) = 2 * NUM_TARGETS, (walks.cfg.height // 8, walks.cfg.width // 8)
    assert batch.images.shape == (num, 3, 8 * h, 8 * w)
    assert batch.front.tokens.shape == (num, tiny.CHANNELS, h, w)
    for layer in (batch.finer, batch.finer.second):
        assert layer.tokens.shape == (num, tiny.CHANNELS, FINER * h, FINER * w)
    covered = (batch.front.coverage > 0).repeat_interleave(8, 1).repeat_interleave(8, 2)
    assert batch.judged.any() and not (batch.judged & ~covered).any()
    assert torch.equal(batch.finer.tokens, again.finer.tokens)


def test_the_loss_pulls_at_the_mover_alone_and_at_judged_pixels_alone(make):
    codec = looking_finer(tiny.modules()[0]).requires_grad_(False)
    codec.mover.requires_grad_(True)
    batch, look = make(generator(2)), pretrained("lite1", LAST_BLOCKS)
    loss, figures = mover_loss(codec, look, batch)
    loss.backward()
    assert all(one.grad is None for one in codec.decoder.parameters())
    assert codec.mover.body[0].weight.grad.any() and codec.mover.fine[-1].weight.grad.any()
    assert set(figures) == {"distance", "unlike", "psnr_moved"}
    batch.images[~batch.judged[:, None].expand_as(batch.images)] = 1.0
    elsewhere = mover_loss(codec, look, batch)[1]
    assert elsewhere["distance"] == pytest.approx(figures["distance"])


def test_training_improves_the_mover_and_leaves_the_rest(footage, tmp_path):
    before = tiny.modules()[0]
    cfg = RunConfig(
        minutes=9, num_steps=40, batch_size=2, learning_rate=5e-3, warmup_steps=5, num_workers=0
    )
    codec, progress = train_mover(cfg, before, footage, tmp_path)
    assert progress.step == 40 and codec.look == "fine"
    for name, value in before.state_dict().items():
        if not name.startswith("mover"):
            assert torch.equal(codec.state_dict()[name], value), name
    batch, look = batches(footage, 8)(generator(9)), pretrained("lite1", LAST_BLOCKS)
    old, new = (
        mover_loss(one, look, batch)[1]["distance"] for one in (looking_finer(before), codec)
    )
    assert new < 0.97 * old
