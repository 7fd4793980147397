"""Contact sheets: one row per method, one column per frame of the return leg."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from worker.eval.protocols import Loop, Walk
from worker.pixels import to_uint8

NUM_COLUMNS = 6
LABEL_HEIGHT = 14


def write_sheet(path: Path, loop: Loop, walks: dict[str, Walk]) -> None:
    """PNG at `path`: the truth, then every walk, at the same frames."""
    back = range(loop.num_out, len(loop.images))
    frames = [back[i * (len(back) - 1) // (NUM_COLUMNS - 1)] for i in range(NUM_COLUMNS)]
    rows = {"truth": loop.images[frames]}
    for name, walk in walks.items():
        rows[name] = walk.images[[walk.index.index(i) for i in frames]]
    sheet = torch.cat([labelled(f"{name}, frames {frames}", row) for name, row in rows.items()])
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet.numpy()).save(path)


def labelled(text: str, images: Tensor) -> Tensor:
    """(n, 3, H, W) -> (H + label, n * W, 3) uint8 with the text above."""
    strip = torch.cat(list(to_uint8(images)), dim=1)
    label = Image.new("RGB", (strip.shape[1], LABEL_HEIGHT), "black")
    ImageDraw.Draw(label).text((3, 1), text, fill="white")
    pixels = torch.frombuffer(bytearray(label.tobytes()), dtype=torch.uint8)
    return torch.cat([pixels.view(LABEL_HEIGHT, -1, 3), strip])
