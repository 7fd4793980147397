"""Stage 5: what the decoder is given at work, and a decoder that alone gets better."""

import numpy as np
import pytest
import tiny
import torch

from worker.photographic import pretrained
from worker.train.decoder import batches, decoder_loss, train_decoder
from worker.train.loop import RunConfig
from worker.train.mover import LAST_BLOCKS, NUM_TARGETS, looking_finer
from worker.train.pictures import Pictures


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def pictures(tmp_path) -> Pictures:
    crops = np.random.default_rng(0).integers(0, 256, (3, 3, 48, 64), dtype=np.uint8)
    np.save(tmp_path / "crops.npy", crops)
    return Pictures(tmp_path / "crops.npy")


@pytest.fixture
def codec():
    codec = looking_finer(tiny.modules()[0]).requires_grad_(False)
    codec.decoder.requires_grad_(True)
    return codec


def test_a_batch_has_as_many_photographs_as_memories(footage, pictures):
    batch = batches(footage, 2, pictures)(generator())
    assert len(batch.shown.images) == 2 * NUM_TARGETS
    assert batch.pictures.shape == (2, *batch.shown.images.shape[1:])
    assert -1 <= float(batch.pictures.min()) < float(batch.pictures.max()) <= 1


def test_the_loss_pulls_at_the_decoder_alone_and_not_at_what_moves(footage, pictures, codec):
    batch, look = batches(footage, 2, pictures)(generator(2)), pretrained("lite1", LAST_BLOCKS)
    loss, figures = decoder_loss(codec, look, batch, generator(3))
    loss.backward()
    trained = {name for name, one in codec.named_parameters() if one.grad is not None}
    assert trained and all(name.startswith("decoder.") for name in trained)
    assert set(figures) == {"distance", "unlike", "psnr", "psnr_moved", "psnr_pictures"}
    others = [i for i in range(2 * NUM_TARGETS) if i % NUM_TARGETS]  # only seen through memories
    hidden = torch.zeros_like(batch.shown.judged)
    hidden[others] = ~batch.shown.judged[others]
    batch.shown.images[hidden[:, None].expand_as(batch.shown.images)] = 1.0
    elsewhere = decoder_loss(codec, look, batch, generator(3))[1]
    assert hidden.any() and elsewhere["distance"] == pytest.approx(figures["distance"])


def test_photographs_may_be_left_out(footage, codec):
    batch, look = batches(footage, 1, None)(generator(2)), pretrained("lite1", LAST_BLOCKS)
    assert "psnr_pictures" not in decoder_loss(codec, look, batch, generator(3))[1]


def test_training_improves_the_decoder_and_leaves_the_rest(footage, tmp_path, codec):
    before = {name: value.clone() for name, value in codec.state_dict().items()}
    batch, look = batches(footage, 8, None)(generator(9)), pretrained("lite1", LAST_BLOCKS)
    old = decoder_loss(codec, look, batch, generator(3))[1]["distance"]
    cfg = RunConfig(
        minutes=9, num_steps=40, batch_size=2, learning_rate=5e-3, warmup_steps=5, num_workers=0
    )
    assert train_decoder(cfg, codec, footage, tmp_path).step == 40
    for name, value in codec.state_dict().items():
        if not name.startswith("decoder"):
            assert torch.equal(before[name], value), name
    assert decoder_loss(codec, look, batch, generator(3))[1]["distance"] < 0.97 * old
