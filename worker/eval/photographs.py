"""Photographs that no training saw: does the codec keep them, and does the memory show a real place
from beside?

scikit-image's and scikit-learn's photographs through the codec; and the Motorcycle pair of the
Middlebury stereo benchmark (scikit-image, Scharstein et al. 2014): the left view is lifted with its
true depth and shown from the right camera, 0.193 m beside.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import skimage.data
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor

from worker.engine import Engine
from worker.eval.metrics import absrel, psnr
from worker.geometry import Cameras, pool_depth
from worker.pixels import from_uint8
from worker.revision import compared, guesses_of

NAMES = ("astronaut", "chelsea", "coffee", "rocket")
FOCAL_PX, BASELINE_M = 994.978, 0.193001
LEFT_CENTRE_PX, RIGHT_CENTRE_PX = (311.193, 254.877), (342.279, 254.877)  # cx, cy


def photographs() -> dict[str, np.ndarray]:
    """(H, W, 3) uint8 by name."""
    pictures = {name: getattr(skimage.data, name)()[..., :3] for name in NAMES}
    samples = load_sample_images()
    names = [Path(name).stem for name in samples.filenames]
    return pictures | dict(zip(names, samples.images, strict=True))


@torch.inference_mode()
def score_photographs(engine: Engine) -> Iterator[tuple[str, float]]:
    height, width = engine.cfg.height, engine.cfg.width
    for name, photograph in photographs().items():
        scale = max(width / photograph.shape[1], height / photograph.shape[0])
        size = [max(round(side * scale), least) for side, least in
                zip(photograph.shape[1::-1], (width, height), strict=True)]  # fmt: skip
        picture = np.array(Image.fromarray(photograph).resize(size, Image.Resampling.LANCZOS))
        top, left = (picture.shape[0] - height) // 2, (picture.shape[1] - width) // 2
        pixels = from_uint8(
            torch.from_numpy(picture[top : top + height, left : left + width])[None]
        )
        decoded = engine.backbone.decode(engine.backbone.encode(pixels))
        yield f"photographs.{name}.psnr", float(psnr(decoded, pixels)[0])


def score_stereo(engine: Engine) -> Iterator[tuple[str, float]]:
    """The left photograph observed with its depth, the right camera's view generated; and the depth
    of the left one.
    """
    left, right, disparity = skimage.data.stereo_motorcycle()  # type: ignore[no-untyped-call]
    offset = RIGHT_CENTRE_PX[0] - LEFT_CENTRE_PX[0]
    depth = FOCAL_PX * BASELINE_M / (disparity + offset)
    depth = np.where(np.isfinite(disparity), depth, 0.0).astype(np.float32)
    picture, depth_m, camera = framed(engine, left, depth, LEFT_CENTRE_PX, 0.0)
    wanted, _, view = framed(engine, right, depth, RIGHT_CENTRE_PX, BASELINE_M)
    world = engine.open(0)
    engine.observe(world, picture, camera, depth_m)
    readout = world.memory.read(view, "nearest")
    shown = from_uint8(engine.step([world], [view])[0].images)
    known = (readout.coverage > 0).repeat_interleave(8, 1).repeat_interleave(8, 2)
    yield "stereo.psnr_covered", float(psnr(shown, from_uint8(wanted[None]), known)[0])
    yield "stereo.coverage", float(readout.coverage.mean())
    world = engine.open(0)
    for image, taken_by in ((picture, camera), (wanted, view)):
        engine.observe(world, image, taken_by)
    truth = pool_depth(depth_m[None], engine.grid)
    guessed = guesses_of(world.sights)[0].depth
    found = compared(engine.backbone, world.sights).depth[:1]
    for name, value in depth_figures(guessed, found, truth):
        yield f"stereo.{name}", value


def depth_figures(guessed: Tensor, found: Tensor, truth: Tensor) -> Iterator[tuple[str, float]]:
    """Depth (1, h, w) guessed from one view and found from two, 0 for none, on the same cells:
    those with a truth that were found; `depth_kept` is their share of those with a truth.
    """
    kept = (truth > 0) & (found > 0)
    yield "depth_absrel_one", float(absrel(guessed, truth, kept)[0])
    yield "depth_absrel_two", float(absrel(found, truth, kept)[0])
    yield "depth_kept", float(kept.sum() / (truth > 0).sum())


def framed(
    engine: Engine, image: np.ndarray, depth: np.ndarray, centre: tuple[float, float], x_m: float
) -> tuple[Tensor, Tensor, Cameras]:
    """The picture's middle at the engine's frame size, its depth, and the camera that took it."""
    height, width = engine.cfg.height, engine.cfg.width
    aspect = width / height
    crop_h = min(image.shape[0], round(image.shape[1] / aspect))
    crop_w = min(image.shape[1], round(crop_h * aspect))
    top, left = (image.shape[0] - crop_h) // 2, (image.shape[1] - crop_w) // 2
    part = image[top : top + crop_h, left : left + crop_w]
    small = np.array(Image.fromarray(part).resize((width, height), Image.Resampling.LANCZOS))
    scale_x, scale_y = width / crop_w, height / crop_h
    intrinsics = torch.tensor(
        [[FOCAL_PX * scale_x, FOCAL_PX * scale_y,
          (centre[0] - left) * scale_x, (centre[1] - top) * scale_y]], dtype=torch.float64
    )  # fmt: skip
    pose = torch.eye(4, dtype=torch.float64)[None].clone()
    pose[0, 0, 3] = x_m
    near = torch.from_numpy(depth[top : top + crop_h, left : left + crop_w].copy())
    return torch.from_numpy(small), near, Cameras(intrinsics, pose, height, width)
