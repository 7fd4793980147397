"""Scenes are a function of their seed alone; textures repeat without a seam."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch

from worker.scenes import families, natural, textures
from worker.scenes.materials import ROLES
from worker.scenes.motion import moving, placed
from worker.scenes.scene import BOX, NOTHING, NUM_ROOM_FACES, Scene, sample_scenes
from worker.scenes.worlds import SHARES


def used(scene: Scene) -> dict[str, torch.Tensor]:
    """One scene's values without padding."""
    num = int((scene.kind[0] != NOTHING).sum())
    values = {}
    for field in fields(scene):
        value = getattr(scene, field.name)[0]
        if field.name in ("kind", "centre", "half", "rotation", "motion"):
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
    assert (size[:, ::2] >= 5).all() and (size[:, ::2] <= 14).all()
    assert (size[:, 1] >= 2.2).all() and (size[:, 1] <= 4.8).all()
    assert (scene.room_high[:, 1] == 0).all()
    count = (scene.kind != NOTHING).sum(1)
    assert (count >= 10).all() and (count <= 60).all()
    top = (scene.centre + scene.half)[..., 1][scene.kind != NOTHING]
    assert (top <= 1e-4).all()  # nothing sinks into the floor
    assert scene.texture.max() < scene.atlas.shape[1]
    assert (scene.room_light > 0).all() and (scene.room_light <= 1).all()


def test_every_layout_appears() -> None:
    scene = sample_scenes(range(24), worlds={"room": 1})
    height = -scene.room_low[:, 1]
    walls = (scene.kind == BOX) & ((2 * scene.half[..., 1] - height[:, None]).abs() < 1e-3)
    walls &= scene.half[..., ::2].amax(-1) > 0.5
    assert set(walls.sum(1).tolist()) >= {0, 1, 2}  # open, L or ring, two rooms with a doorway


@pytest.mark.parametrize("name", list(families.FAMILIES))
def test_textures_have_the_same_colours_as_their_mips(name: str) -> None:
    base = textures.hsv(0.1, 0.4, 0.7)
    packed = families.bake(name, np.random.default_rng(3), base)
    assert packed.shape == (textures.NUM_TEXELS,) and packed.dtype == np.int32
    finest = packed[: textures.SIZE**2].view(np.uint8).reshape(-1, 4)[:, :3].mean(0)
    coarsest = packed[-1:].view(np.uint8)[:3]
    assert np.abs(finest - coarsest).max() < 2
    assert 20 < finest.mean() < 240
    assert np.array_equal(packed, families.bake(name, np.random.default_rng(3), base))


@pytest.mark.parametrize("name", ["plaster", "clouds", "marble", "rubble", "grass", "foliage"])
def test_smooth_textures_repeat_without_a_seam(name: str) -> None:
    image = families.FAMILIES[name](np.random.default_rng(5), textures.hsv(0.1, 0.4, 0.7))
    for axis in (0, 1):
        steps = np.abs(np.roll(image, -1, axis) - image).mean((1 - axis, 2))
        assert steps[-1] < 2.5 * steps.mean()


def test_no_seed_and_negative_seeds_are_refused() -> None:
    for seeds in ([], [3, -1]):
        with pytest.raises(ValueError, match="seed"):
            sample_scenes(seeds)


@pytest.mark.parametrize("world", list(SHARES))
def test_a_world_can_be_asked_for(world: str) -> None:
    scene = sample_scenes([5, 6], worlds={world: 1.0})
    assert ((scene.kind != NOTHING).sum(1) >= 8).all()
    assert ((scene.sky > 0).flatten(1).any(1) == (world == "court")).all()
    assert torch.equal(scene.atlas, sample_scenes([5, 6], worlds={world: 1.0}).atlas)


def test_unknown_worlds_and_no_shares_are_refused() -> None:
    for worlds in ({"cave": 1.0}, {}, {"room": 0.0}, {"room": -1.0}):
        with pytest.raises(ValueError, match="worlds must map some of room, corridor"):
            sample_scenes([1], worlds=worlds)


def test_moving_things_are_added_to_the_same_world() -> None:
    still, lively = sample_scenes([3]), sample_scenes([3], dynamic=True)
    num = still.kind.shape[1]
    assert lively.kind.shape[1] > num and not moving(still).any()
    assert moving(lively)[:, num:].any() and not moving(lively)[:, :num].any()
    for name in ("kind", "centre", "half", "rotation", "motion"):
        assert torch.equal(getattr(lively, name)[:, :num], getattr(still, name))
    assert torch.equal(lively.room_light, still.room_light)


def test_what_moves_stays_inside_and_what_is_still_stays_put() -> None:
    scene = sample_scenes(range(20), dynamic=True)
    centre, _ = placed(scene, torch.arange(0, 200, 5))
    inside = (centre > scene.room_low[:, None, None]) & (centre < scene.room_high[:, None, None])
    mask = moving(scene)
    assert mask.any(1).float().mean() > 0.9
    assert inside.all(-1).transpose(1, 2)[mask].all()
    still = (centre == scene.centre[:, None]).all(-1).transpose(1, 2)[~mask]
    assert still.all()
    step = centre.diff(dim=1).norm(dim=-1)  # of five frames
    assert step.amax() < 5 * 0.2
    assert step.amax(1)[mask].max() > 0.1


def test_every_role_has_families_and_pictures_keep_their_finish() -> None:
    assert {family for role in ROLES.values() for family in role} <= set(families.FAMILIES)
    assert set(natural.PICTURES) <= set(families.FAMILIES)
