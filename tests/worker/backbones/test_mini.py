"""The mini backbone as the engine sees it; the last tests use the weights that are shipped."""

from dataclasses import replace

import pytest
import tiny
import torch
from boxes import orbit

from worker.backbones import create_backbone
from worker.backbones.base import Condition
from worker.backbones.mini import MiniConfig, create
from worker.depth.head import DepthHead
from worker.depth.refine import Refiner, RefinerConfig
from worker.dynamics_head import MotionConfig, MotionHead
from worker.engine import Engine, EngineConfig
from worker.eval.metrics import psnr
from worker.geometry import Cameras
from worker.photographic import Features, FeaturesConfig
from worker.placed import Placed
from worker.scenes.paths import sample_cameras
from worker.scenes.render import render
from worker.scenes.scene import HELD_OUT_SEED, sample_scenes
from worker.train.stages import WRITTEN_AGAIN
from worker.weights import SHIPPED, WeightsError, checksum, read_card, save_module

GRID = (tiny.HEIGHT // 8, tiny.WIDTH // 8)
NAMES = ("codec", "denoiser", "depth")


def condition(frames: int = 2) -> Condition:
    shape = (1, frames, *GRID)
    views = orbit(frames + 1, *GRID).reshape(1, -1)
    nothing, pairs = torch.zeros(shape), torch.zeros(1, frames, 2, *GRID)
    tokens = torch.zeros(1, frames, tiny.CHANNELS, *GRID)
    return Condition(
        Placed(tokens, nothing, nothing, pairs, pairs),
        cameras=views[:, 1:],
        recent=torch.ones(1, 1, tiny.CHANNELS, *GRID),
        recent_cameras=views[:, :1],
    )


@pytest.fixture
def weights(tmp_path):
    return tiny.save_weights(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_head_that_sees_is_told_of_pictures_that_were_seen(weights, dtype):
    torch.manual_seed(0)
    head = tiny.randomise(DepthHead(replace(tiny.DEPTH, sees=(112, 320))))
    save_module(head, weights / "depth.safetensors", {"stage": "depth"})
    with pytest.raises(WeightsError, match=r"features\.safetensors is missing"):
        create("cpu", weights)
    eyes = weights / "features.safetensors"
    save_module(Features(FeaturesConfig()), eyes, {})
    with pytest.raises(WeightsError, match="but the depth head was trained with None"):
        create("cpu", weights)
    told = {"stage": "depth", "features": checksum(eyes)}
    save_module(head, weights / "depth.safetensors", told)
    backbone = create("cpu", weights, MiniConfig(dtype=dtype))
    images, views, none = tiny.pictures(2), orbit(2, tiny.HEIGHT, tiny.WIDTH), torch.zeros(2, *GRID)
    with torch.inference_mode():
        latents = backbone.encode(images)
        told, alone = (
            backbone.depth(latents, views, none, images),
            backbone.depth(latents, views, none),
        )
        other = backbone.depth(latents, views, none, images.flip(0))
    for a, b in ((told, alone), (told, other)):
        assert a[0].isfinite().all() and not torch.equal(a[0], b[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_five_calls_have_the_contracts_shapes_and_types(dtype):
    backbone = tiny.backbone(dtype=dtype)
    assert (backbone.stride, backbone.channels) == (8, tiny.CHANNELS)
    images = tiny.pictures(2)
    with torch.inference_mode():
        latents = backbone.encode(images)
        decoded = backbone.decode(latents)
        noise = torch.randn(1, 2, tiny.CHANNELS, *GRID)
        chunk = backbone.denoise(condition(), noise)
        views, none = orbit(2, tiny.HEIGHT, tiny.WIDTH), torch.zeros(2, *GRID)
        depth, confidence = backbone.depth(latents, views, none)
    assert latents.shape == (2, tiny.CHANNELS, *GRID)
    assert decoded.shape == images.shape and chunk.shape == noise.shape
    assert depth.shape == confidence.shape == (2, *GRID)
    for value in (latents, decoded, chunk, depth, confidence):
        assert value.dtype == torch.float32 and value.isfinite().all()
    assert (depth > 0).all() and (confidence >= 0).all() and (confidence <= 1).all()


def test_half_precision_is_close_to_single():
    exact, half = (tiny.backbone(dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    noise = torch.randn(1, 2, tiny.CHANNELS, *GRID, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        a, b = (backbone.denoise(condition(), noise) for backbone in (exact, half))
    assert float((a - b).abs().max()) < 0.1 * float(a.std())


def test_the_number_of_steps_is_a_setting():
    noise = torch.randn(1, 2, tiny.CHANNELS, *GRID, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        one, three = (tiny.backbone(steps).denoise(condition(), noise) for steps in (1, 3))
    assert not torch.allclose(one, three)


def test_depth_is_told_the_field_of_view():
    backbone, views = tiny.backbone(), orbit(1, tiny.HEIGHT, tiny.WIDTH)
    narrow = Cameras(views.intrinsics * 2, views.world_from_camera, tiny.HEIGHT, tiny.WIDTH)
    latents = backbone.encode(tiny.pictures(1))
    none = torch.zeros(1, *GRID)
    wide, zoomed = (backbone.depth(latents, view, none)[0] for view in (views, narrow))
    assert not torch.allclose(wide, zoomed)


def test_a_hint_about_depth_is_heard():
    backbone, views = tiny.backbone(), orbit(1, tiny.HEIGHT, tiny.WIDTH)
    latents = backbone.encode(tiny.pictures(1))
    without, told = (backbone.depth(latents, views, torch.full((1, *GRID), m))[0] for m in (0, 9))
    assert not torch.allclose(without, told)


def test_weights_are_loaded_by_name_and_identified_by_their_files(weights):
    backbone = create_backbone("mini", folder=weights)
    parts = [checksum(weights / f"{name}.safetensors")[:8] for name in NAMES]
    assert backbone.weights == "mini@" + "".join(parts)
    expected = tiny.backbone(dtype=torch.bfloat16)
    images = tiny.pictures(1)
    torch.testing.assert_close(backbone.encode(images), expected.encode(images), atol=0.05, rtol=0)


def test_loaded_networks_do_not_train(weights):
    backbone = create("cpu", weights, MiniConfig(num_steps=1))
    for module in (backbone.codec, backbone.denoiser, backbone.depth_head):
        assert not module.training
        assert not any(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_part_is_named(weights, name):
    (weights / f"{name}.safetensors").unlink()
    with pytest.raises(WeightsError, match=rf"{name}\.safetensors is missing"):
        create_backbone("mini", folder=weights)


def test_an_unknown_backbone_is_refused():
    with pytest.raises(ValueError, match=r"'giant' is unknown: choose one of \['mini'\]"):
        create_backbone("giant")


def test_shipped_weights_load_and_their_cards_say_how_they_were_made():
    backbone = create_backbone("mini")
    assert backbone.weights.startswith("mini@") and len(backbone.weights) == 5 + 40
    assert backbone.channels == 16
    assert "mini@16df6adb015d7f619dffe8cf859eb154" in backbone.continues  # the same latents
    assert backbone.weights not in backbone.continues
    names = [*NAMES, "motion", "refiner"]
    assert sum((SHIPPED / f"{name}.safetensors").stat().st_size for name in names) < 40e6
    for name in names:
        card = read_card(SHIPPED / f"{name}.safetensors")
        made_by = [stage for stage, file in WRITTEN_AGAIN.items() if file == name] or [name]
        assert card["stage"] in made_by and card["steps"] > 0 and card["minutes"] > 0
        assert card["data"]["first_seed"] + card["data"]["num_scenes"] <= HELD_OUT_SEED
        assert {"commit", "seed", "recipe", "device", "date"} <= card.keys()


@pytest.fixture(scope="module")
def room():
    """Two views of a held-out world: images (2, 3, H, W), depth (2, H, W) and cameras."""
    scene = sample_scenes([HELD_OUT_SEED + 5])
    cameras = sample_cameras(scene, "orbit", 4, 128, 192, [HELD_OUT_SEED + 5])[:, :2]
    frames = render(scene, cameras)
    return frames.rgb[0], frames.depth[0], cameras[0]


def test_shipped_weights_reproduce_a_held_out_picture(room):
    images, _, _ = room
    backbone = create_backbone("mini")
    with torch.inference_mode():
        decoded = backbone.decode(backbone.encode(images))
    assert float(psnr(decoded, images).min()) > 30


def test_shipped_weights_show_what_was_seen_when_the_camera_stays(room):
    images, depth, cameras = room
    engine = Engine(create_backbone("mini"), EngineConfig(height=128, width=192))
    world = engine.open(seed=1)
    picture = ((images[0] + 1) * 127.5).round().byte().permute(1, 2, 0)
    seen = engine.observe(world, picture, cameras[:1], depth[0])
    shown = engine.step([world], [cameras[:1]])[0]
    assert float(shown.coverage.mean()) > 0.9
    first, again = (one.images.permute(0, 3, 1, 2) / 127.5 - 1 for one in (seen, shown))
    assert float(psnr(again, first)) > 24


def test_shipped_weights_guess_depth_far_better_than_a_constant(room):
    images, depth, cameras = room
    backbone = create_backbone("mini")
    with torch.inference_mode():
        guess, _ = backbone.depth(
            backbone.encode(images), cameras, torch.zeros(len(images), 16, 24)
        )
    truth = depth[:, 4::8, 4::8]
    error = ((guess - truth).abs() / truth).mean()
    constant = ((truth.median() - truth).abs() / truth).mean()
    assert float(error) < 0.7 * float(constant)


def test_the_motion_head_is_used_where_there_is_one(weights):
    h, w = GRID
    views = orbit(2, 8 * h, 8 * w)
    inputs = tiny.pictures(2, 4 * h, 4 * w), torch.full((2, 2 * h, 2 * w), 2.0), views
    without = create("cpu", weights)
    assert not without.sees_motion
    with pytest.raises(RuntimeError, match="no motion head"):
        without.motion(*inputs)
    head = tiny.randomise(MotionHead(MotionConfig(4, 8, (8, 16, 16), 1)))
    save_module(head, weights / "motion.safetensors", {"stage": "motion"})
    backbone = create("cpu", weights)
    with torch.inference_mode():
        probability = backbone.motion(*inputs)
    assert backbone.sees_motion and probability.shape == (2, *GRID)
    assert 0 < probability.min() < probability.max() < 1
    part = checksum(weights / "motion.safetensors")[:8]
    assert backbone.weights == without.weights + part


def test_edges_are_told_by_a_network_where_there_is_one(weights):
    h, w = GRID
    views = orbit(2, 8 * h, 8 * w)
    closer, rough = torch.full((2, 2 * h, 2 * w), 2.0), torch.full((2, h, w), 2.0)
    inputs = tiny.pictures(2, 8 * h, 8 * w), views, closer, rough
    without = create("cpu", weights)
    assert torch.equal(without.refine(*inputs), closer)
    refiner = tiny.randomise(Refiner(RefinerConfig(widths=(8, 8, 8))))
    save_module(refiner, weights / "refiner.safetensors", {"stage": "refiner"})
    backbone = create("cpu", weights)
    with torch.inference_mode():
        parts = backbone.refine(*inputs)
    assert parts.shape == (2, 4 * h, 4 * w) and 0 < float((parts - 2).abs().max()) < 0.2
    part = checksum(weights / "refiner.safetensors")[:8]
    assert backbone.weights == without.weights + part
