"""Stage 1: views of one world, moved tokens, and a codec that gets better."""

import json

import pytest
import tiny
import torch

from worker.geometry import Cameras
from worker.train.codec import SPAN, batches, codec_loss, difference, moved_latents, train_codec
from worker.train.loop import RunConfig


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


def test_a_batch_is_three_views_of_one_walk_close_to_each_other(walks):
    images, depths, cameras = batches(walks, 5)(generator())
    assert images.shape == (5, 3, 3, 48, 64) and depths.shape == (5, 3, 48, 64)
    poses = torch.from_numpy(walks.poses[:])
    for views in cameras.world_from_camera:
        found = (views[:, None, None] == poses).all(-1).all(-1).nonzero()  # view, scene, frame
        assert len({int(scene) for _, scene, _ in found}) == 1
        frames = [int(frame) for _, _, frame in found]
        assert len(set(frames)) == 3 and max(frames) - min(frames) < SPAN


def test_the_same_generator_gives_the_same_batch(walks):
    make = batches(walks, 2)
    first, again, other = (make(generator(seed))[0] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_each_cell_takes_the_nearer_of_two_views():
    cameras = ahead([0.0, 1.0, 0.0])  # the second context stands nearer and sees less
    latents = torch.stack([torch.full((1, 4, 6, 8), value) for value in (1.0, 2.0)], dim=1)
    moved, covered = moved_latents(latents, plane(cameras), cameras)
    assert covered.all() and set(moved.unique().tolist()) == {1.0, 2.0}
    assert (moved[0, :, 3, 4] == 2).all() and (moved[0, :, 0, 0] == 1).all()
    swapped = moved_latents(latents.flip(1), plane(cameras)[:, [1, 0, 2]], cameras[:, [1, 0, 2]])
    assert torch.equal(swapped[0], moved)


def test_what_no_context_saw_is_empty_and_not_covered():
    cameras = ahead([1.0, 1.0, 0.0])
    moved, covered = moved_latents(torch.ones(1, 2, 4, 6, 8), plane(cameras), cameras)
    assert covered[0, 3, 4] and not covered[0, 0, 0]
    assert (moved.amax(1) > 0).equal(covered)


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
    codec, progress = train_codec(cfg, walks, tmp_path, tiny.CODEC)
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert progress.step == 40 and log[-1]["psnr"] > log[0]["psnr"] + 0.5
    with torch.no_grad():
        latents = codec.encode(walks.images(torch.arange(2), torch.zeros(2, 1).long())[:, 0])
    assert latents.mean((0, 2, 3)).abs().max() < 1e-4
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(tiny.CHANNELS))
