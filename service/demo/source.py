"""What the demo walks through: a shipped sample world with its recorded walk, or a person's own
image.

A sample is `<name>.png` and `<name>.json`; the json may hold `path`, a list of 16-number
world_from_camera matrices that begins where the image was taken. Beside it may lie
`<name>.truth.webp` or `.mp4`: what a camera on that path really sees.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image, ImageSequence

from service.demo.figures import Images, Poses, Walk, revisits
from service.errors import FieldProblem, InvalidRequest
from service.poses import Action, expand
from service.samples import SAMPLES

DEFAULT_SAMPLE = "library"
TRUTH_TITLE = "ground truth"

# Without a recorded path: look around to the right and step forward, far enough that most of what
# is seen is new.
FRAMES_OUT = 16
WALK_OUT = Action(forward_m=0.6, right_m=0.4, yaw_deg=36.0)


@dataclass(frozen=True)
class Source:
    """The image as the API takes it, the path (t, 4, 4) relative to it, and the truth where there
    is one.
    """

    title: str
    form: dict[str, str]
    poses: Poses
    files: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    truth: Walk | None = None


def from_image(path: Path, fov_deg: float | None = None) -> Source:
    """A person's own image (PNG, JPEG or WebP); raises InvalidRequest if there is no such file."""
    if not path.is_file():
        raise _invalid("image", str(path), "the path of a PNG, JPEG or WebP file")
    form = {} if fov_deg is None else {"fov_deg": str(fov_deg)}
    return Source(path.name, form, out_and_back(), {"image": (path.name, path.read_bytes())})


def from_sample(name: str | None = None, folder: Path = SAMPLES) -> Source:
    """A shipped sample; raises InvalidRequest if there is none of that name, or if it is broken."""
    known = sorted(path.stem for path in folder.glob("*.json"))
    chosen = name or DEFAULT_SAMPLE
    if chosen not in known:
        raise _invalid(
            "sample", chosen, f"one of {', '.join(known) or 'none, as none are installed'}"
        )
    facts: dict[str, Any] = json.loads((folder / f"{chosen}.json").read_text())
    recorded = facts.get("path")
    poses = out_and_back() if recorded is None else _relative(recorded)
    if not revisits(poses):
        raise _invalid(
            f"{chosen}.json", "a path that never returns", "a path that leaves and returns"
        )
    truth = None if recorded is None else _truth(folder, chosen, len(poses))
    return Source(facts.get("title", chosen), {"sample": chosen}, poses, truth=truth)


def out_and_back(frames_out: int = FRAMES_OUT) -> Poses:
    """(2 * frames_out + 1, 4, 4): from the image's camera away, and over the same poses back."""
    out = expand(np.eye(4), [WALK_OUT], 1.0, WALK_OUT.yaw_deg / frames_out, frames_out)
    there = np.concatenate([np.eye(4)[None], out])
    return np.concatenate([there, there[-2::-1]])


def _relative(path: list[list[float]]) -> Poses:
    poses = np.asarray(path, dtype=np.float64).reshape(-1, 4, 4)
    return np.asarray(np.linalg.inv(poses[0]) @ poses)


def _truth(folder: Path, name: str, count: int) -> Walk | None:
    for file in sorted(folder.glob(f"{name}.truth.*")):
        images = _frames(file)
        if len(images) != count:
            raise _invalid(file.name, f"{len(images)} frames", f"{count}, one per pose of the path")
        return Walk(TRUTH_TITLE, images, recorded=True)
    return None


def _frames(file: Path) -> Images:
    """All frames (t, h, w, 3) of an animated WebP or a video."""
    if file.suffix == ".webp":
        with Image.open(file) as image:
            return np.stack([np.asarray(f.convert("RGB")) for f in ImageSequence.Iterator(image)])
    with av.open(str(file)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


def _invalid(name: str, seen: str, allowed: str) -> InvalidRequest:
    problem = FieldProblem(name, seen, allowed)
    return InvalidRequest(f"{name} can't be used: {seen}; give {allowed}.", fields=(problem,))
