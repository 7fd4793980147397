"""A handful of named worlds for the demo; all held out, so no model was trained on them.

`python -m worker.scenes.samples FOLDER` writes what the viewer ships of each: first view, its
depth, a closed walk and what a camera on that walk really sees.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from worker.geometry import Cameras
from worker.pixels import to_uint8
from worker.scenes.paths import LoopKind, sample_cameras
from worker.scenes.render import render
from worker.scenes.scene import Scene, sample_scenes

NUM_FRAMES = 33  # of each closed walk; odd, so that the turning pose comes once


@dataclass(frozen=True)
class Sample:
    seed: int
    description: str
    path: LoopKind = "dolly"  # its first pose is the sample's first view


SAMPLES: dict[str, Sample] = {
    "parlour": Sample(1_000_115, "A cream parlour with a wine-red sofa, a shelf and a landscape"),
    "doorway": Sample(1_000_104, "A pale corridor with a door, a painting and a way around"),
    "library": Sample(1_000_132, "Bookshelves and a blue sofa between mossy stone and brick"),
    "atrium": Sample(1_000_133, "A courtyard under the sky, with planters and an arcade"),
    "gallery": Sample(1_000_113, "A light blue hall with pillars, plants and pictures"),
    "lounge": Sample(1_000_109, "Pale yellow brick, a pink sofa, a shelf and a stone floor"),
    "garden": Sample(1_000_144, "A lawn between stone walls, a bench and a tree"),
    "stairs": Sample(1_000_137, "Green tiled steps up to a platform with a rail"),
}


def sample_view(name: str, height: int, width: int, num_frames: int = 1) -> tuple[Scene, Cameras]:
    """A sample's world and the first cameras (1, num_frames) of its closed walk."""
    if name not in SAMPLES:
        raise ValueError(f"unknown sample {name!r}, one of {', '.join(SAMPLES)}")
    sample = SAMPLES[name]
    scene = sample_scenes([sample.seed])
    cameras = sample_cameras(scene, sample.path, NUM_FRAMES, height, width, [sample.seed])
    start = cameras.reshape(NUM_FRAMES)[:num_frames]
    return scene, start.reshape(1, len(start))


def write_sample(folder: Path, name: str, height: int = 192, width: int = 320) -> None:
    """`name`.png, .depth.npy (float32 metres), .json and .truth.webp in `folder`."""
    scene, cameras = sample_view(name, height, width, NUM_FRAMES)
    frames = render(scene, cameras)
    images = [Image.fromarray(image.numpy()) for image in to_uint8(frames.rgb[0])]
    images[0].save(folder / f"{name}.png")
    np.save(folder / f"{name}.depth.npy", frames.depth[0, 0].numpy())
    images[0].save(
        folder / f"{name}.truth.webp", save_all=True, append_images=images[1:], quality=90, method=6
    )
    focal = float(cameras.intrinsics[0, 0, 0])
    card = {
        "title": name.capitalize(),
        "description": SAMPLES[name].description,
        "fov_deg": round(float(np.degrees(2 * np.arctan(0.5 * width / focal))), 6),
        "seed": SAMPLES[name].seed,
        "path": [pose.flatten().tolist() for pose in cameras.world_from_camera[0]],
    }
    (folder / f"{name}.json").write_text(json.dumps(card) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m worker.scenes.samples", description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for name in SAMPLES:
        write_sample(folder, name)


if __name__ == "__main__":
    main()
