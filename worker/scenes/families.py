"""All texture families by name, and the bake of one: pattern, weather, contrast, mip pyramid."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from worker.scenes import natural, textures
from worker.scenes.textures import Image, pack

CONTRAST = 0.75  # of all families about their mean: real rooms are calmer than their patterns drawn
FAMILIES = {**textures.PATTERNS, **natural.FAMILIES}


def bake(name: str, rng: np.random.Generator, base: Image) -> NDArray[np.int32]:
    """(NUM_TEXELS,) int32 R | G << 8 | B << 16: all mip levels of one texture of this family."""
    image = FAMILIES[name](rng, base)
    if name not in natural.PICTURES:
        image = natural.weathered(rng, image)
    mean = image.mean((0, 1))
    contrast = 1.0 if name == "sky" else CONTRAST
    return pack(np.clip(mean + contrast * (image - mean), 0, 1).astype(np.float32))
