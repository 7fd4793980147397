"""Crops of real pictures: which are found, how they are cut, how batches are drawn."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from worker.train.pictures import LICENCES, Pictures, find_pictures, write_crops


def picture(width: int, height: int, seed: int) -> Image.Image:
    """Bright, and busy enough not to be left out as dull."""
    pixels = np.random.default_rng(seed).integers(60, 255, (height // 10, width // 10, 3))
    return Image.fromarray(pixels.astype(np.uint8)).resize((width, height), Image.Resampling.BOX)


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packages")
    (folder / "wallpapers").mkdir()
    picture(1280, 800, 0).save(folder / "wallpapers" / "lake.jpg")
    picture(1280, 800, 1).save(folder / "wallpapers" / "screenshot.png")
    (folder / "wallpapers" / "copyright").write_text("GPL-2+\n")
    stone = io.BytesIO()
    picture(128, 128, 2).save(stone, "PNG")
    with zipfile.ZipFile(folder / "pak.pk3", "w") as archive:
        archive.writestr("textures/stone.png", stone.getvalue())
        archive.writestr("textures/sfx/flame.png", stone.getvalue())
        archive.writestr("CREDITS", "many")
    return folder


@pytest.fixture(scope="module")
def crops(packages: Path) -> Path:
    write_crops(packages, packages / "crops.npy", 12, 48, 80)
    return packages / "crops.npy"


def test_pictures_are_found_in_folders_and_archives(packages):
    assert sorted(one.size for one in find_pictures(packages)) == [(128, 128), (1280, 800)]
    assert all(one.mode == "RGB" for one in find_pictures(packages))


def test_crops_are_the_same_for_the_same_seed_and_differ_from_each_other(packages, crops):
    stored = np.load(crops, mmap_mode="r")
    assert stored.shape == (12, 3, 48, 80) and stored.dtype == np.uint8
    assert len({crop.tobytes() for crop in stored}) == 12 and stored.std() > 10
    write_crops(packages, packages / "again.npy", 12, 48, 80)
    assert np.array_equal(np.load(packages / "again.npy"), stored)


def test_a_batch_is_random_crops_of_any_size(crops):
    pictures = Pictures(crops)
    batch = pictures.batch(torch.Generator().manual_seed(1), 6, 32, 48)
    assert batch.shape == (6, 3, 32, 48) and batch.dtype == torch.uint8
    assert torch.equal(batch, pictures.batch(torch.Generator().manual_seed(1), 6, 32, 48))
    assert not torch.equal(batch, pictures.batch(torch.Generator().manual_seed(2), 6, 32, 48))
    whole = pictures.batch(torch.Generator().manual_seed(3), 4, 48, 80)
    stored = torch.from_numpy(np.load(crops))
    for one in whole:  # as stored or mirrored: there is no room for a scale
        assert any(torch.equal(one, x) or torch.equal(one.flip(-1), x) for x in stored)


def test_what_is_missing_or_too_small_is_said(tmp_path, crops):
    with pytest.raises(ValueError, match="no pictures at"):
        Pictures(tmp_path / "none.npy")
    np.save(tmp_path / "grey.npy", np.zeros((2, 1, 8, 8), np.uint8))
    with pytest.raises(ValueError, match=r"expected uint8 \(n, 3, h, w\)"):
        Pictures(tmp_path / "grey.npy")
    with pytest.raises(ValueError, match="too small"):
        Pictures(crops).batch(torch.Generator(), 1, 64, 80)
    with pytest.raises(ValueError, match="0 photographs and 0 textures"):
        write_crops(tmp_path, tmp_path / "out.npy", 1, 48, 80)


def test_every_source_has_a_licence():
    assert all("GPL" in licence for licence in LICENCES.values()) and len(LICENCES) == 3
