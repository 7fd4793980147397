"""Depth uploads: 16-bit PNG in millimetres or float32 NPY in metres, checked against the image and
for their unit.

How: the NPY header is matched against the one form numpy writes, so nothing is evaluated, unpickled
or allocated on a header's word. A median that no room or street has is taken for the wrong unit and
refused with the likely cause.

Axis legend: h w the frame's pixels, H W the depth map's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from service.errors import FieldProblem, InvalidUpload
from service.uploads.pictures import UploadLimits, check_aspect, check_size, open_picture

Value = TypeVar("Value", np.float32, np.bool_)

MIN_MEDIAN_M, MAX_MEDIAN_M = 0.05, 200.0
MIN_VALID_FRACTION = 0.01
_NPY_HEADER = re.compile(
    rb"\{'descr': '([<>]f[248])', 'fortran_order': (False|True), "
    rb"'shape': \((\d{1,9}), (\d{1,9})\), ?\} *\n"
)


@dataclass(frozen=True)
class DepthMap:
    """z-depth in metres, (H, W) float32; 0 = unknown."""

    depth_m: NDArray[np.float32]


def decode_depth(
    data: bytes, limits: UploadLimits, image_width: int, image_height: int
) -> DepthMap:
    """Bytes of either format -> metres; raises InvalidUpload for another size, unit or format."""
    check_size(data, limits, "depth")
    if data.startswith(b"\x93NUMPY"):
        depth_m = _from_npy(data)
    elif data.startswith(b"\x89PNG"):
        depth_m = _from_png(data, limits)
    else:
        raise _invalid(
            f"{len(data)} bytes starting {data[:12]!r}",
            "a 16-bit greyscale PNG (millimetres) or a float32 NPY file (metres)",
        )
    check_aspect(depth_m.shape, image_width, image_height, "depth")
    depth_m[~(np.isfinite(depth_m) & (depth_m > 0))] = 0.0
    _check_unit(depth_m)
    return DepthMap(depth_m)


def sample_nearest(
    values: NDArray[Value],  # (H', W') of the whole image
    image_size: tuple[int, int],
    box: tuple[float, float, float, float],
    frame_size: tuple[int, int],
) -> NDArray[Value]:
    """What lies under each frame pixel's centre, (h, w); `box`: the crop in pixels of the image."""
    width, height = frame_size
    left, top, right, bottom = box
    scale_x, scale_y = values.shape[1] / image_size[0], values.shape[0] / image_size[1]
    columns = (left + (np.arange(width) + 0.5) * (right - left) / width) * scale_x
    rows = (top + (np.arange(height) + 0.5) * (bottom - top) / height) * scale_y
    nearest = rows.astype(np.intp)[:, None], columns.astype(np.intp)
    return np.ascontiguousarray(values[nearest])


def _from_npy(data: bytes) -> NDArray[np.float32]:
    length_bytes = 2 if data[6:7] == b"\x01" else 4
    start = 8 + length_bytes
    header_bytes = int.from_bytes(data[8:start], "little")
    header = _NPY_HEADER.fullmatch(data[start : start + min(header_bytes, 10_000)])
    if header is None:
        raise _invalid(
            f"NPY header {data[start : start + 80]!r}",
            "a two-dimensional float32 array saved with numpy.save",
        )
    dtype, fortran, height, width = header.groups()
    shape, payload = (int(height), int(width)), data[start + header_bytes :]
    expected_bytes = shape[0] * shape[1] * np.dtype(dtype.decode()).itemsize
    if len(payload) != expected_bytes or expected_bytes == 0:
        raise _invalid(
            f"{len(payload)} bytes of data for shape {shape}", f"{expected_bytes} bytes, not empty"
        )
    flat = np.frombuffer(payload, dtype=dtype.decode())
    values = flat.reshape(shape, order="F" if fortran == b"True" else "C")
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, that is unknown
        return values.astype(np.float32)


def _from_png(data: bytes, limits: UploadLimits) -> NDArray[np.float32]:
    with open_picture(data, limits, "depth", ("PNG",)) as image:
        if not image.mode.startswith("I"):
            raise _invalid(f"PNG of mode {image.mode}", "a 16-bit greyscale PNG (millimetres)")
        depth_m = np.array(image, dtype=np.float32)
        depth_m *= np.float32(0.001)
        return depth_m


def _check_unit(depth_m: NDArray[np.float32]) -> None:
    known = depth_m[depth_m > 0]
    if known.size < MIN_VALID_FRACTION * depth_m.size:
        raise _invalid(
            f"{known.size} of {depth_m.size} pixels with a depth above 0",
            f"at least {MIN_VALID_FRACTION:.0%} known pixels; 0 or NaN mean unknown",
        )
    median_m = float(np.median(known, overwrite_input=True))
    if median_m > MAX_MEDIAN_M:
        hint = "probably millimetres: divide by 1000, or send a 16-bit PNG"
    elif median_m < MIN_MEDIAN_M:
        hint = "probably metres in a millimetre PNG, or kilometres: send float32 NPY in metres"
    else:
        return
    raise _invalid(
        f"a median depth of {median_m:.4g} m",
        f"a median between {MIN_MEDIAN_M:g} and {MAX_MEDIAN_M:g} m; {hint}",
    )


def _invalid(seen: str, allowed: str) -> InvalidUpload:
    return InvalidUpload(
        f"The depth can't be used: {seen}.", fields=(FieldProblem("depth", seen, allowed),)
    )
