"""Walks as latents."""

import tiny
import torch

from worker.geometry import lift
from worker.train.latents import encode_walks, predict_depths

EVERY = torch.arange(10)[None]


def test_latents_are_the_codecs(walks, latent_walks):
    codec = tiny.modules()[0].requires_grad_(False)
    expected = codec.encode(walks.images(torch.tensor([1]), EVERY)[0])
    assert latent_walks.latents.shape == (2, 10, tiny.CHANNELS, 6, 8)
    assert latent_walks.latents.dtype == torch.bfloat16
    error = (latent_walks.latents[1].float() - expected).abs()
    assert float(error.mean()) < 0.02 * float(expected.abs().mean())


def test_depth_is_what_the_memory_would_be_told(walks, latent_walks):
    scene = torch.tensor([0])
    lifted = lift(
        walks.depths(scene, EVERY)[0],
        walks.cameras(scene, EVERY)[0],
        (6, 8),
        walks.motion_masks(scene, EVERY)[0],
    )
    assert torch.equal(latent_walks.depth[0] > 0, lifted.valid)
    assert torch.equal(latent_walks.depth[0][lifted.valid], lifted.depth[lifted.valid].float())
    assert lifted.valid.float().mean() > 0.9


def test_cameras_are_those_of_the_grid(walks, latent_walks):
    cameras = latent_walks.cameras
    assert cameras.shape == (2, 10) and (cameras.height, cameras.width) == (6, 8)
    assert torch.equal(cameras.world_from_camera, torch.from_numpy(walks.poses[:]))
    assert torch.equal(cameras.intrinsics * 8, torch.from_numpy(walks.intrinsics[:]))


def test_encoding_leaves_the_codec_as_it_was(walks):
    codec = tiny.modules()[0]
    encode_walks(codec, walks)
    assert {parameter.dtype for parameter in codec.parameters()} == {torch.float32}


def test_predicted_depths_are_the_heads_in_metres(latent_walks):
    head = tiny.modules()[2]
    depths = predict_depths(head, latent_walks)
    assert depths.shape == latent_walks.depth.shape and depths.dtype == torch.float32
    assert (depths > 0).all() and not depths.requires_grad
    assert not torch.equal(depths[0], depths[1])
