"""Mask uploads: a picture that is not black where the image must not be remembered (people, cars,
sky)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from service.uploads.pictures import UploadLimits, check_aspect, open_picture


def decode_mask(
    data: bytes, limits: UploadLimits, image_width: int, image_height: int
) -> NDArray[np.bool_]:
    """(H', W'), True = do not remember; raises InvalidUpload."""
    with open_picture(data, limits, "mask", ("PNG", "WEBP")) as image:
        grey = np.asarray(image.convert("L"))
    check_aspect(grey.shape, image_width, image_height, "mask")
    return grey > 0
