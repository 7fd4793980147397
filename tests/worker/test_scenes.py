"""Scenes are a function of their seed alone; textures repeat without a seam."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch

from worker.scenes import textures
from worker.scenes.scene import BOX, NOTHING, NUM_ROOM_FACES, Scene, sample_scenes


def used(scene: Scene) -> dict[str, torch.Tensor]:
    """One scene's values without padding."""
    num = int((scene.kind[0] != NOTHING).sum())
    values = {}
    for field in fields(scene):
        value = getattr(scene, field.name)[0]
        if field.name in ("kind", "centre", "half", "rotation"):
            value = value[:num]
        elif field.name in ("texture", "period", "phase", "tint"):
            value = value[: num + NUM_ROOM_FACES]
        values[field.name] = value
    return values


def test_a_scene_depends_on_its_seed_and_not_on_its_batch() -> None:
    alone, batch = used(sample_scenes([7])), sample_scenes([3, 1_000_007, 7])
    again = used(batch[2:3])
    assert all(torch.equal(alone[name], again[name]) for name in alone)
    assert not torch.equal(batch.room_high[0], batch.room_high[2])


def test_scenes_are_as_big_and_as_full_as_promised() -> None:
    scene = sample_scenes(range(40, 52))
    size = scene.room_high - scene.room_low
    assert (size[:, ::2] >= 5).all() and (size[:, ::2] <= 10).all()
    assert (size[:, 1] >= 2.6).all() and (size[:, 1] <= 4).all()
    assert (scene.room_high[:, 1] == 0).all()
    count = (scene.kind != NOTHING).sum(1)
    assert (count >= 10).all() and (count <= 60).all()
    top = (scene.centre + scene.half)[..., 1][scene.kind != NOTHING]
    assert (top <= 1e-4).all()  # nothing sinks into the floor
    assert scene.texture.max() < scene.atlas.shape[1]
    assert (scene.floor_light > 0).all() and (scene.floor_light <= 1).all()


def test_every_layout_appears() -> None:
    scene = sample_scenes(range(24))
    height = -scene.room_low[:, 1]
    walls = (scene.kind == BOX) & ((2 * scene.half[..., 1] - height[:, None]).abs() < 1e-3)
    walls &= scene.half[..., ::2].amax(-1) > 0.5
    assert set(walls.sum(1).tolist()) >= {0, 1, 2}  # open, L or ring, two rooms with a doorway


@pytest.mark.parametrize("name", list(textures.FAMILIES))
def test_textures_have_the_same_colours_as_their_mips(name: str) -> None:
    base = textures.hsv(0.1, 0.4, 0.7)
    packed = textures.bake(name, np.random.default_rng(3), base)
    assert packed.shape == (textures.NUM_TEXELS,) and packed.dtype == np.int32
    finest = packed[: textures.SIZE**2].view(np.uint8).reshape(-1, 4)[:, :3].mean(0)
    coarsest = packed[-1:].view(np.uint8)[:3]
    assert np.abs(finest - coarsest).max() < 2
    assert 20 < finest.mean() < 240
    assert np.array_equal(packed, textures.bake(name, np.random.default_rng(3), base))


@pytest.mark.parametrize("name", ["plaster", "clouds", "marble", "fabric", "terrazzo"])
def test_smooth_textures_repeat_without_a_seam(name: str) -> None:
    image = textures.FAMILIES[name](np.random.default_rng(5), textures.hsv(0.1, 0.4, 0.7))
    for axis in (0, 1):
        steps = np.abs(np.roll(image, -1, axis) - image).mean((1 - axis, 2))
        assert steps[-1] < 2.5 * steps.mean()


def test_no_seed_and_negative_seeds_are_refused() -> None:
    for seeds in ([], [3, -1]):
        with pytest.raises(ValueError, match="seed"):
            sample_scenes(seeds)
