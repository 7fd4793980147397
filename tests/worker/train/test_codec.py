"""Stage 1: views of one world, moved tokens, and a codec that gets better."""

import json

import pytest
import tiny
import torch

from worker.codec import Codec
from worker.geometry import Cameras
from worker.train.codec import (
    addresses,
    batches,
    codec_loss,
    difference,
    fetched,
    train_codec,
)
from worker.train.loop import RunConfig

STILL = torch.zeros(3, 48, 64, dtype=torch.bool)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ahead(z: list[float]) -> Cameras:
    """(1, n) cameras on one axis that look along it; a plane stands at z = 3."""
    pose = torch.eye(4, dtype=torch.float64).repeat(1, len(z), 1, 1)
    pose[0, :, 2, 3] = torch.tensor(z)
    intrinsics = torch.tensor([40.0, 40.0, 32, 24], dtype=torch.float64)
    return Cameras(intrinsics.expand(1, len(z), 4), pose, 48, 64)


def plane(cameras: Cameras) -> torch.Tensor:
    """(1, n, H, W) depth of the plane at z = 3."""
    distance = 3 - cameras.world_from_camera[..., 2, 3].float()
    return distance[..., None, None].expand(-1, -1, 48, 64)


def test_a_batch_is_three_views_of_one_walk(walks):
    batch = batches(walks, 5)(generator())
    assert batch.images.shape == (5, 3, 3, 48, 64) and len(batch.pictures) == 0
    frames = torch.from_numpy(walks.rgb[:]).flatten(0, 1).float() / 127.5 - 1
    num_frames = walks.cfg.num_frames
    for views in batch.images:
        rows = [int((frames == view).flatten(1).all(1).nonzero()[0]) for view in views]
        assert len(set(rows)) == 3 and len({row // num_frames for row in rows}) == 1


def test_the_same_generator_gives_the_same_batch(walks):
    make = batches(walks, 2)
    first, again, other = (make(generator(seed)).images for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_each_cell_gets_the_address_of_a_token_that_shows_its_place():
    cameras = ahead([0.0, 2.0, 0.0])  # the second context stands nearer and sees less
    seen = addresses(plane(cameras)[0], cameras[0], STILL)
    assert (seen.coverage > 0).all()
    context, row, column = seen.tokens[0].long()
    assert context[3, 4] == 1 and context[0, 0] == 0
    assert (row[0, 0], column[0, 0]) == (0, 0) and row.max() < 6 and column.max() < 8


def test_what_moves_is_not_remembered():
    cameras, moving = ahead([0.0, 0.0, 0.0]), STILL.clone()
    moving[:2, :24] = True
    seen = addresses(plane(cameras)[0], cameras[0], moving)
    assert not seen.coverage[0, :2].any() and seen.coverage[0, 4:].all()


def test_tokens_are_fetched_from_their_addresses_with_gradients():
    latents = torch.arange(2 * 4 * 6 * 8.0).reshape(1, 2, 4, 6, 8).requires_grad_()
    address = torch.zeros(1, 3, 6, 8)
    address[0, :, 2, 3] = torch.tensor([1.0, 5.0, 7.0])
    tokens = fetched(latents, address)
    assert torch.equal(tokens[0, :, 2, 3], latents[0, 1, :, 5, 7])
    assert torch.equal(tokens[0, :, 0, 0], latents[0, 0, :, 0, 0])
    tokens[0, :, 2, 3].sum().backward()
    assert latents.grad[0, 1, :, 5, 7].eq(1).all() and int(latents.grad.sum()) == 4


def test_what_no_context_saw_is_not_covered():
    cameras = ahead([1.0, 1.0, 0.0])
    seen = addresses(plane(cameras)[0], cameras[0], STILL)
    assert seen.coverage[0, 3, 4] and not seen.coverage[0, 0, 0]


def test_the_difference_is_nearly_l1():
    target = torch.zeros(2, 3, 4, 5)
    assert difference(target + 0.5, target).shape == (2, 4, 5)
    assert float(difference(target - 0.5, target).mean()) == pytest.approx(0.5, abs=1e-3)
    assert 0 < float(difference(target, target).mean()) < 0.02


def test_the_loss_reaches_encoder_and_decoder(walks):
    codec = tiny.modules()[0]
    loss, figures = codec_loss(codec, batches(walks, 2)(generator()), generator())
    loss.backward()
    assert all(parameter.grad is not None for parameter in codec.parameters())
    assert codec.encoder[1].weight.grad.abs().sum() > 0
    assert set(figures) == {"psnr", "psnr_moved", "latent_rms"}
    assert 0 < figures["psnr"] < 40 and float(loss.detach()) > 0


def test_large_latents_cost(walks):
    batch = batches(walks, 2)(generator())
    codec = tiny.modules()[0]
    losses = []
    for scale in (1.0, 1e-3):  # the same pictures through latents a thousand times as large
        codec.scale.fill_(scale)
        losses.append(codec_loss(codec, batch, generator())[1]["latent_rms"])
    assert losses[1] == pytest.approx(1000 * losses[0], rel=0.05)


def test_training_improves_pictures_and_leaves_normalised_latents(walks, tmp_path):
    cfg = RunConfig(
        minutes=1e9,
        num_steps=40,
        batch_size=2,
        learning_rate=3e-3,
        warmup_steps=4,
        log_every=10,
    )
    codec, progress = train_codec(cfg, walks, tmp_path, Codec(tiny.CODEC))
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert progress.step == 40 and log[-1]["psnr"] > log[0]["psnr"] + 0.5
    with torch.no_grad():
        latents = codec.encode(walks.images(torch.arange(2), torch.zeros(2, 1).long())[:, 0])
    assert latents.mean((0, 2, 3)).abs().max() < 1e-4
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(tiny.CHANNELS))
