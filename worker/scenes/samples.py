"""A handful of named worlds for the demo; all held out, so no model was trained on them."""

from __future__ import annotations

from dataclasses import dataclass

from worker.geometry import Cameras
from worker.scenes.paths import LoopKind, sample_cameras
from worker.scenes.scene import Scene, sample_scenes


@dataclass(frozen=True)
class Sample:
    seed: int
    description: str
    path: LoopKind = "dolly"  # its first pose is the sample's first view


SAMPLES: dict[str, Sample] = {
    "parlour": Sample(1_000_100, "A pale parlour with a low table, a striped sofa and a blue rug"),
    "doorway": Sample(1_000_104, "A brick wall with a doorway to a lilac room"),
    "library": Sample(1_000_112, "A pale study with a bookshelf, pictures and a blue sofa"),
    "atrium": Sample(1_000_108, "A wide, bright room with plants, shelves and a green rug"),
    "block": Sample(1_000_114, "Corridors around a slate block that hides half the room"),
    "lounge": Sample(1_000_126, "Behind a brick corner, a lounge on a terrazzo floor"),
    "greenhouse": Sample(1_000_129, "A green partition, a plant and a passage beside it"),
    "diamonds": Sample(1_000_116, "Blue diamond walls over a plank floor"),
}


def sample_view(name: str, height: int, width: int, num_frames: int = 1) -> tuple[Scene, Cameras]:
    """A sample's world and the first cameras (1, num_frames) of its closed loop of 32 frames."""
    if name not in SAMPLES:
        raise ValueError(f"unknown sample {name!r}, one of {', '.join(SAMPLES)}")
    sample = SAMPLES[name]
    scene = sample_scenes([sample.seed])
    cameras = sample_cameras(scene, sample.path, 32, height, width, [sample.seed])
    start = cameras.reshape(32)[:num_frames]
    return scene, start.reshape(1, len(start))
