"""What the demo measures and shows: PSNR at places visited twice, a contact sheet and a video.

How: all walks go over the same poses, so frame k of each shows the same place; a place counts as
visited twice when a later pose equals an earlier one. Trade-off: PSNR only, because it needs no
model; `python -m worker.eval.revisit` knows more.

Axis legend: t frames, h w pixels; images are uint8 RGB.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Images = NDArray[np.uint8]
Poses = NDArray[np.float64]

SAME_POSE = 1e-3  # metres, and parts of a rotation matrix
SCALE = 2  # the model's frames are small; video and sheet show them larger
STRIP_HEIGHT = 26  # pixels of label above a picture
GAP = 4  # pixels between two pictures beside each other
SHEET_COLUMNS = 6
BACKGROUND, TEXT, DIM = (11, 15, 20), (223, 231, 241), (134, 149, 168)


@dataclass(frozen=True)
class Walk:
    """One session's frames along the path, and what the service said about them."""

    title: str
    images: Images  # (t, h, w, 3)
    timings_ms: list[dict[str, float]] = field(default_factory=list)  # of each frame's chunk
    wall_s: float = 0.0  # from opening the session to the last frame
    memory: dict[str, int] = field(default_factory=dict)
    recorded: bool = False  # not generated: both visits are the same picture


def revisits(poses: Poses) -> list[tuple[int, int]]:
    """(first, again) frame numbers of each later pose (t, 4, 4) that repeats an earlier one after
    having left it.
    """
    pairs = []
    for again in range(len(poses)):
        gaps = np.abs(poses[:again] - poses[again]).max(axis=(1, 2), initial=0.0)
        same = np.flatnonzero(gaps < SAME_POSE)
        if len(same) and again - same[0] > 1:
            pairs.append((int(same[0]), again))
    return pairs


def psnr(a: Images, b: Images) -> float:
    """Peak signal to noise ratio in dB of two images of one size; 99 when they are equal."""
    error = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return 99.0 if error < 1e-5 else 10 * float(np.log10(255**2 / error))


def mean_psnr(a: Images, b: Images) -> float | None:
    """Mean over frames (t, h, w, 3) of the PSNR in dB; None if there are no frames."""
    if not len(a):
        return None
    return float(np.mean([psnr(x, y) for x, y in zip(a, b, strict=True)]))


def revisit_psnr(walk: Walk, pairs: Sequence[tuple[int, int]]) -> float | None:
    """How much the second visit looks like the first, dB."""
    first, again = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    return mean_psnr(walk.images[first], walk.images[again])


def truth_psnr(walk: Walk, truth: Walk) -> float | None:
    """How much the generated frames look like the recorded ones, dB; frame 0 was given and does not
    count.
    """
    return mean_psnr(walk.images[1:], truth.images[1:])


def sharpness(images: Images, reference: Images) -> float:
    """Gradient energy of images (t, h, w, 3) over that of reference ones.

    Well below 1 is blur, which can be alike on both visits because it shows nothing. It counts
    made-up texture as it counts detail: only a look at the sheet tells them apart.
    """
    return gradient_energy(images) / max(gradient_energy(reference), 1e-6)


def gradient_energy(images: Images) -> float:
    """Mean squared difference of neighbouring pixels' brightness (0 to 255)."""
    grey = images.astype(np.float64).mean(axis=-1)
    return float(np.mean(np.diff(grey, axis=1) ** 2) + np.mean(np.diff(grey, axis=2) ** 2))


def fitted(walk: Walk, height: int, width: int) -> Walk:
    """The same walk at another picture size."""
    if walk.images.shape[1:3] == (height, width):
        return walk
    resized = [
        np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))
        for image in walk.images
    ]
    return replace(walk, images=np.stack(resized))


def stage_ms(walk: Walk) -> dict[str, float]:
    """Mean milliseconds per generated frame and stage; frame 0 was given and does not count.

    The frames of one chunk are made together and all carry the chunk's times.
    """
    generated = walk.timings_ms[1:]
    chunks = [timings for timings, _ in groupby(generated)]
    stages = {stage: None for timings in chunks for stage in timings}  # in their order
    return {
        stage: sum(timings.get(stage, 0.0) for timings in chunks) / len(generated)
        for stage in stages
    }


def video_frames(walks: Sequence[Walk]) -> Iterator[Images]:
    """The walks side by side under their titles, one picture per frame (even sides, for H.264)."""
    for number in range(len(walks[0].images)):
        tiles = [_tile(walk.images[number], walk.title, f"frame {number}") for walk in walks]
        yield np.asarray(_beside(tiles))


def contact_sheet(walks: Sequence[Walk], pairs: Sequence[tuple[int, int]]) -> Image.Image:
    """Columns are places, in the order of the first visit; each walk has a row for the first visit
    and one for the return.

    So one place stands in one column: a memory that works makes the two rows of a walk look the
    same.
    """
    places = sorted(pairs)
    columns = np.linspace(0, len(places) - 1, min(SHEET_COLUMNS, len(places))).round().astype(int)
    chosen = [places[column] for column in columns]
    rows = []
    for walk in walks:
        rows.append([_tile(walk.images[a], walk.title, f"going, frame {a}") for a, _ in chosen])
        if not walk.recorded:
            rows.append([_tile(walk.images[b], walk.title, f"back, frame {b}") for _, b in chosen])
    return _below([_beside(row) for row in rows])


def _tile(image: Images, title: str, note: str) -> Image.Image:
    height, width = image.shape[:2]
    size = (width * SCALE, height * SCALE)
    tile = Image.new("RGB", (size[0], size[1] + STRIP_HEIGHT), BACKGROUND)
    tile.paste(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC), (0, STRIP_HEIGHT))
    draw = ImageDraw.Draw(tile)
    font = ImageFont.load_default(14)
    draw.text((8, 5), title, TEXT, font)
    draw.text((size[0] - 8 - draw.textlength(note, font), 5), note, DIM, font)
    return tile


def _beside(tiles: Sequence[Image.Image]) -> Image.Image:
    step = tiles[0].width + GAP
    row = Image.new("RGB", (step * len(tiles) - GAP, tiles[0].height), BACKGROUND)
    for index, tile in enumerate(tiles):
        row.paste(tile, (index * step, 0))
    return row


def _below(rows: Sequence[Image.Image]) -> Image.Image:
    sheet = Image.new("RGB", (rows[0].width, sum(row.height for row in rows)), BACKGROUND)
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    return sheet
