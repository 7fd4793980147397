"""Views for the depth head, and what a mirror makes of them."""

import tiny
import torch

from worker.backbones.rays import view_rays
from worker.depth.seen import seen
from worker.geometry import lift
from worker.photographic import pretrained
from worker.train.depth_views import MAX_CONTEXT, DepthViews, features_of, joined, views_of
from worker.train.kept import kept
from worker.train.latents import encode_walks
from worker.train.mirror import Mirrored, developed


def test_there_is_a_view_per_frame(latent_walks, features):
    views = views_of(latent_walks, features, seed=0)
    assert len(views) == 20 and views.source.dtype == torch.int8
    assert torch.equal(views.latents[13], latent_walks.latents[1, 3])
    assert torch.equal(views.depth[13], latent_walks.depth[1, 3])
    assert torch.equal(views.rays[13], view_rays(latent_walks.cameras[1, 3:4])[0])


def test_features_are_of_the_pictures_in_order(walks):
    """On whole multiples of 32 pixels; in the mirror those of the mirrored picture."""
    eyes = pretrained("lite1", (14, 20))
    half, quarter = features_of(eyes, walks)
    assert half.shape == (20, 112, 4, 4) and quarter.shape == (20, 320, 2, 2)
    picture = walks.images(torch.tensor([1]), torch.tensor([[3]]))[0]
    alone = seen(eyes, picture)
    torch.testing.assert_close(half[13], alone[0][0].bfloat16(), rtol=0.1, atol=0.1)
    torch.testing.assert_close(quarter[13], alone[1][0].bfloat16(), rtol=0.1, atol=0.1)
    assert 0.9 < float(half.float().square().mean()) < 1.1
    other, _ = features_of(eyes, Mirrored(walks))
    assert not torch.equal(other, half)


def test_a_hint_is_what_other_frames_saw(latent_walks, features):
    """Most of its surfaces are those that the view itself sees."""
    views = views_of(latent_walks, features, seed=0)
    both = (views.hint > 0) & (views.depth > 0)
    near = (views.hint / views.depth.clamp(min=1e-3) - 1).abs() < 0.2
    assert both.float().mean() > 0.1 and near[both].float().mean() > 0.7
    assert 0 <= int(views.source.min()) and int(views.source.max()) < MAX_CONTEXT
    assert not torch.equal(views.hint, views_of(latent_walks, features, seed=1).hint)


def test_views_are_made_once_and_kept(latent_walks, features, tmp_path):
    made = []

    def make():
        made.append(views_of(latent_walks, features, seed=0, num_workers=1))
        return made[-1]

    first, again = (kept(tmp_path / "views.safetensors", DepthViews, make) for _ in range(2))
    assert len(made) == 1
    alone = views_of(latent_walks, features, seed=0)  # in this process
    for name, part in vars(alone).items():
        assert torch.equal(getattr(first, name), part) and torch.equal(getattr(again, name), part)


def test_the_mirror_shows_the_same_world_turned_round(walks, features):
    """Rays, depth and cells of mirrored views are those of the mirrored walk, lifted anew."""
    codec = tiny.modules()[0]
    plain, mirrored = (encode_walks(codec, one) for one in (walks, Mirrored(walks)))
    views = views_of(plain, features, seed=0).mirrored(mirrored.latents.flatten(0, 1), features)
    assert torch.equal(views.depth, mirrored.depth.flatten(0, 1))
    rays = torch.cat([view_rays(mirrored.cameras[scene]) for scene in range(2)])
    torch.testing.assert_close(views.rays, rays, rtol=1e-5, atol=1e-6)
    assert len(joined([views, views])) == 40


def test_points_of_the_mirrored_walk_are_mirrored(walks):
    scene, frame = torch.tensor([0]), torch.tensor([[4]])
    mirror = Mirrored(walks)
    here, there = (
        lift(one.depths(scene, frame)[0], one.cameras(scene, frame)[0], (6, 8)).positions
        for one in (walks, mirror)
    )
    turned = there.flip(-2) * torch.tensor([-1.0, 1.0, 1.0])
    torch.testing.assert_close(turned, here, rtol=1e-4, atol=1e-4)
    assert mirror.motion_masks(scene, frame).shape == (1, 1, 48, 64)


def test_some_pictures_are_taken_as_they_are_and_others_exposed_differently(walks):
    pictures = (walks.images(torch.tensor([0]), torch.arange(10)[None])[0] + 1) / 2
    taken = developed(pictures, torch.Generator().manual_seed(3))
    light = taken.mean((1, 2, 3)) / pictures.mean((1, 2, 3))
    assert taken.min() >= 0 and taken.max() <= 1 and light.std() > 0.05
    first, again = (Mirrored(walks).images(torch.tensor([0]), torch.arange(10)[None])
                    for _ in range(2))  # fmt: skip
    assert torch.equal(first, again)
