"""Contact sheets."""

import numpy as np
import torch
from PIL import Image

from worker.eval.sheet import LABEL_HEIGHT, NUM_COLUMNS, labelled, write_sheet
from worker.pixels import to_uint8


def test_a_sheet_has_a_labelled_row_per_method(tmp_path, loop, walks):
    path = tmp_path / "deep" / "sheet.png"
    write_sheet(path, loop, walks)
    with Image.open(path) as sheet:
        pixels = np.asarray(sheet)
    height, width = 64 + LABEL_HEIGHT, 96
    assert pixels.shape == ((1 + len(walks)) * height, NUM_COLUMNS * width, 3)
    rows = {"truth": loop.images, **{name: walk.images for name, walk in walks.items()}}
    for at, (name, images) in enumerate(rows.items()):
        row = pixels[at * height + LABEL_HEIGHT : (at + 1) * height]
        last = images[loop.num_out :][-1] if name == "truth" else images[-1]
        assert np.array_equal(row[:, -width:], to_uint8(last[None])[0].numpy()), name


def test_a_label_is_written_above_the_pictures():
    images = torch.zeros(3, 3, 16, 40)
    strip = labelled("truth", images)
    assert strip.shape == (16 + LABEL_HEIGHT, 120, 3) and strip.dtype == torch.uint8
    assert int(strip[:LABEL_HEIGHT].max()) > 200 and (strip[LABEL_HEIGHT:] == 128).all()
    assert not torch.equal(strip, labelled("null", images))
