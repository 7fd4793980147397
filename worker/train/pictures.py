"""Natural pictures for the codec: crops of the photographs and textures that packages carry.

Rendered worlds alone teach a codec rendered worlds; a person's photograph needs the real thing.
`python -m worker.train.pictures PACKAGES OUT` takes a folder of unpacked packages (`apt-get
download NAME`, `dpkg -x`), reads the pictures in it and in its .pk3 archives, and writes OUT: one
array of random crops that training maps into memory. Crops of photographs are taken at several
scales; small textures are tiled first, as they are on a wall. Used while training only: no picture
ships, and LICENCES goes into the weight card.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

LICENCES = {  # Debian package -> what its copyright file and the pictures' own metadata say
    "mate-backgrounds": "GPL-2+, CC-BY-SA-4.0",
    "plasma-workspace-wallpapers": "GPL-2+, LGPL-3, CC-BY-SA-4.0",
    "openarena-081-textures": "GPL-2+",
}
SUFFIXES = (".jpg", ".jpeg", ".png", ".tga")
SKIPPED = (  # drawings, skies, signs: no natural surfaces
    *("screenshot", "_dark", "desktop/", "Konqui", "Kay", "Volna", "Flow", "env/", "symbols/"),
    *("common/", "flares/", "fogs/", "sfx", "skies", "proto", "light/"),
)
PHOTOGRAPH_PIXELS = 1_000_000  # larger pictures are photographs, smaller ones textures to be tiled
PHOTOGRAPH_SHARE = 0.7
SPAN = (1.0, 4.0)  # a crop's side is 1 / SPAN of the photograph's
DULL, DARK = 2.5, 40.0  # mean step between neighbours, mean (grey levels): below, mostly left out

Pixels = NDArray[np.uint8]  # (h, w, 3)


class Pictures:
    """Stored crops (num, 3, H, W) uint8, memory-mapped; batches are random crops of those."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            raise ValueError(
                f"no pictures at {path}: make them with `python -m worker.train.pictures`"
            )
        self.path, self.crops = path, np.load(path, mmap_mode="r")
        if self.crops.ndim != 4 or self.crops.shape[1] != 3 or self.crops.dtype != np.uint8:
            raise ValueError(
                f"{path} holds {self.crops.dtype} {self.crops.shape}, expected uint8 (n, 3, h, w)"
            )

    def __reduce__(self) -> tuple[type[Pictures], tuple[Path]]:
        """By its path: a pickled map would be a copy of all crops."""
        return Pictures, (self.path,)

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.crops).hexdigest()[:12]

    def batch(self, generator: torch.Generator, num: int, height: int, width: int) -> Tensor:
        """(num, 3, height, width) uint8: random scale in 0.5 to 1 where the crop is large enough,
        random place, mirrored half of the time.
        """
        if height > self.crops.shape[2] or width > self.crops.shape[3]:
            raise ValueError(f"pictures are {self.crops.shape[2:]}, too small for {height, width}")
        picked = torch.randint(len(self.crops), (num,), generator=generator).tolist()
        out = [self._crop(index, generator, height, width) for index in picked]
        return torch.stack(out)

    def _crop(self, index: int, generator: torch.Generator, height: int, width: int) -> Tensor:
        full_h, full_w = self.crops.shape[2:]
        draw = torch.rand(4, generator=generator).tolist()
        scale = max(0.5 + 0.5 * draw[0], height / full_h, width / full_w)
        h, w = round(height / scale), round(width / scale)
        top, left = int(draw[1] * (full_h - h + 1)), int(draw[2] * (full_w - w + 1))
        crop = torch.from_numpy(self.crops[index, :, top : top + h, left : left + w].copy())
        if (h, w) != (height, width):
            crop = torch.nn.functional.interpolate(
                crop[None].float(), (height, width), mode="bilinear", antialias=True
            )[0]
            crop = crop.round().clamp(0, 255).byte()
        return crop.flip(-1) if draw[3] < 0.5 else crop


def find_pictures(folder: Path) -> Iterator[Image.Image]:
    """Every picture under a folder and in its .pk3 archives, in order of path."""
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".pk3":
            with zipfile.ZipFile(path) as archive:
                for name in sorted(archive.namelist()):
                    if _is_wanted(name):
                        yield _open(io.BytesIO(archive.read(name)))
        elif path.is_file() and _is_wanted(str(path.relative_to(folder))):
            yield _open(path)


def _is_wanted(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not any(word in name for word in SKIPPED)


def _open(source: Path | io.BytesIO) -> Image.Image:
    with Image.open(source) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


def write_crops(folder: Path, out: Path, num: int, height: int, width: int, seed: int = 0) -> None:
    """(num, 3, height, width) uint8 .npy of random crops; a function of folder and seed."""
    pictures = list(find_pictures(folder))
    photographs = [p for p in pictures if p.width * p.height >= PHOTOGRAPH_PIXELS]
    textures = [p for p in pictures if min(p.size) >= 128 and p not in photographs]
    if not photographs or not textures:
        raise ValueError(
            f"{folder} holds {len(photographs)} photographs and {len(textures)} textures; "
            "need some of both: unpack the packages there"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    crops = np.lib.format.open_memmap(out, "w+", dtype=np.uint8, shape=(num, 3, height, width))
    for index in tqdm(range(num), mininterval=10):
        rng = np.random.default_rng([seed, index])
        group = photographs if rng.random() < PHOTOGRAPH_SHARE else textures
        crop = _random_crop(group, rng, height, width)
        for _ in range(8):
            step = np.abs(np.diff(crop.astype(np.float32), axis=1)).mean()
            if step >= DULL and crop.mean() >= DARK:
                break
            crop = _random_crop(group, rng, height, width)
        crops[index] = crop.transpose(2, 0, 1)
    crops.flush()


def _random_crop(
    group: list[Image.Image], rng: np.random.Generator, height: int, width: int
) -> Pixels:
    picture = group[int(rng.integers(len(group)))]
    if picture.width * picture.height >= PHOTOGRAPH_PIXELS:
        span = rng.uniform(*SPAN)
        reach = min(picture.width / width, picture.height / height) / span
    else:
        picture = _tiled(picture, height, width)
        reach = rng.uniform(1.0, min(picture.width / width, picture.height / height))
    w, h = int(reach * width), int(reach * height)
    left = int(rng.integers(picture.width - w + 1))
    top = int(rng.integers(picture.height - h + 1))
    box = (left, top, left + w, top + h)
    crop = picture.resize((width, height), Image.Resampling.BOX, box=box, reducing_gap=2.0)
    return np.asarray(crop)


def _tiled(texture: Image.Image, height: int, width: int) -> Image.Image:
    """The texture repeated until it is 1 to 2 times as large as a crop in its shorter direction."""
    columns, rows = -(-width // texture.width), -(-height // texture.height)
    sheet = Image.new("RGB", ((columns + 1) * texture.width, (rows + 1) * texture.height))
    for row in range(rows + 1):
        for column in range(columns + 1):
            sheet.paste(texture, (column * texture.width, row * texture.height))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m worker.train.pictures", description=__doc__)
    parser.add_argument("packages", type=Path, help="folder of unpacked packages")
    parser.add_argument("out", type=Path, help="the .npy file to write")
    parser.add_argument("--count", type=int, default=6000)
    parser.add_argument("--height", type=int, default=192)
    parser.add_argument("--width", type=int, default=320)
    args = parser.parse_args()
    write_crops(args.packages, args.out, args.count, args.height, args.width)


if __name__ == "__main__":
    main()
