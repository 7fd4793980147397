"""Uploads become the one thing a worker reads: a frame-sized RGB image, its intrinsics and, if
sent, its depth.

What: bounded decoding of PNG, JPEG and WebP, a centre-crop to the frame's aspect, a resize, and
intrinsics that follow. How: sizes are checked in the header before a pixel is decoded; the field of
view comes from the caller, else from EXIF, else it is 60 degrees (of a world's later pictures: as
that of its frames), and the answer says which. Depth is sampled by nearest neighbour at the same
places: an average over an edge would be a surface that is nowhere. Trade-off: cropping loses the
borders of an upload with another aspect, which is honest; padding would have to invent them.

Axis legend: h w the frame's pixels, H W the upload's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from service.errors import FieldProblem, InvalidUpload
from service.limits import (
    DEFAULT_FOV_DEG,
    MAX_FOV_DEG,
    MIN_FOV_DEG,
    MIN_FRAME_FOV_DEG,
    MIN_IMAGE_SIDE,
    PATCH_PX,
)
from service.uploads.depth_maps import DepthMap, decode_depth, sample_nearest
from service.uploads.masks import decode_mask
from service.uploads.pictures import UploadLimits, open_picture

FourNumbers = tuple[float, float, float, float]
MAX_OUTSIDE_PX = 0.5  # rounding of somebody's intrinsics
FILM_WIDTH_MM = 36.0  # what EXIF's "35 mm equivalent" focal length refers to


@dataclass(frozen=True)
class Lens:
    """Intrinsics of an upload in its own pixels, and where they came from."""

    fx: float
    fy: float
    cx: float
    cy: float
    source: str  # "intrinsics" | "fov_deg" | "exif" | "session" | "default"


@dataclass(frozen=True)
class Picture:
    """A decoded image, upright RGB, and the focal length its EXIF gave, in pixels."""

    image: Image.Image
    exif_focal_px: float | None

    @property
    def width(self) -> int:
        return self.image.width

    @property
    def height(self) -> int:
        return self.image.height


@dataclass(frozen=True)
class Crop:
    """The part of the upload that became the frame: x, y, width, height in the upload's pixels."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Observation:
    """What a worker observes, all at frame size."""

    image: NDArray[np.uint8]  # (h, w, 3)
    intrinsics: tuple[float, float, float, float]  # fx, fy, cx, cy in pixels of the frame
    depth_m: NDArray[np.float32] | None  # (h, w) z-depth, 0 = unknown
    mask: NDArray[np.bool_] | None  # (h, w) True = do not remember
    crop: Crop
    lens_source: str
    upload_size: tuple[int, int]  # width, height

    @property
    def fov_deg(self) -> float:
        """The frame's horizontal field of view."""
        fx, _, cx, _ = self.intrinsics
        width = self.image.shape[1]
        return math.degrees(math.atan(cx / fx) + math.atan((width - cx) / fx))


@dataclass(frozen=True)
class Files:
    """One picture's bytes as they arrived, and what belongs to it."""

    image: bytes
    depth: bytes | None = None
    mask: bytes | None = None


def observation_from(
    files: Files,
    frame_size: tuple[int, int],
    limits: UploadLimits,
    *,
    fov_deg: float | None = None,
    intrinsics: FourNumbers | None = None,
    frame_lens: FourNumbers | None = None,
) -> Observation:
    """Decode, check, crop and resize; `frame_size` is (width, height). With `frame_lens` (fx, fy,
    cx, cy of the frame) the crop is what that camera sees, else the largest centred one; a picture
    of which nothing else is known was taken by it. Raises InvalidUpload naming the field.
    """
    upload = decode_image(files.image, limits)
    depth_map = mask = None
    if files.depth is not None:
        depth_map = decode_depth(files.depth, limits, upload.width, upload.height)
    if files.mask is not None:
        mask = decode_mask(files.mask, limits, upload.width, upload.height)
    lens = lens_for(upload, fov_deg, intrinsics)
    if frame_lens is None:
        crop = centre_crop(upload.width, upload.height, *frame_size)
    elif lens.source == "default":
        crop = centre_crop(upload.width, upload.height, *frame_size)
        lens = _same_camera(crop, frame_lens, frame_size)
    else:
        crop = crop_for(upload, lens, frame_lens, frame_size)
    observation = compose(upload, depth_map, mask, lens, crop, frame_size)
    _check_view(observation)
    if depth_map is not None:
        _check_resolution("depth", depth_map.depth_m.shape, observation)
    if mask is not None:
        _check_resolution("mask", mask.shape, observation)
    return observation


def compose(
    upload: Picture,
    depth_map: DepthMap | None,
    mask: NDArray[np.bool_] | None,
    lens: Lens,
    crop: Crop,
    frame_size: tuple[int, int],
) -> Observation:
    """Crop and resize; the intrinsics follow."""
    width, height = frame_size
    box = (crop.x, crop.y, crop.x + crop.width, crop.y + crop.height)
    frame = upload.image.resize(frame_size, Image.Resampling.LANCZOS, box=box)
    scale_x, scale_y = width / crop.width, height / crop.height
    upload_size = (upload.width, upload.height)
    return Observation(
        image=np.asarray(frame),
        intrinsics=(
            lens.fx * scale_x,
            lens.fy * scale_y,
            (lens.cx - crop.x) * scale_x,
            (lens.cy - crop.y) * scale_y,
        ),
        depth_m=None
        if depth_map is None
        else sample_nearest(depth_map.depth_m, upload_size, box, frame_size),
        mask=None if mask is None else sample_nearest(mask, upload_size, box, frame_size),
        crop=crop,
        lens_source=lens.source,
        upload_size=upload_size,
    )


def decode_image(data: bytes, limits: UploadLimits, field: str = "image") -> Picture:
    """PNG, JPEG or WebP bytes -> upright RGB; the first frame of an animation; alpha is dropped."""
    with open_picture(data, limits, field, ("PNG", "JPEG", "WEBP")) as image:
        _check_sides(image, field)
        focal_px = _exif_focal_px(image)
        ImageOps.exif_transpose(image, in_place=True)
        return Picture(_rgb(image), focal_px)


def lens_for(
    upload: Picture,
    fov_deg: float | None,
    intrinsics: tuple[float, float, float, float] | None,
) -> Lens:
    """The caller's word first, then EXIF, then 60 degrees; raises InvalidUpload."""
    if intrinsics is not None:
        _check_intrinsics(intrinsics, upload.width, upload.height)
        return Lens(*intrinsics, source="intrinsics")
    if fov_deg is not None:
        return _centred(upload, _focal_px(fov_deg, upload.width), "fov_deg")
    if upload.exif_focal_px is not None:
        return _centred(upload, upload.exif_focal_px, "exif")
    return _centred(upload, _focal_px(DEFAULT_FOV_DEG, upload.width), "default")


def centre_crop(width: int, height: int, frame_width: int, frame_height: int) -> Crop:
    """The largest centred crop with exactly the frame's aspect, in fractions of a pixel."""
    crop_width = min(width, height * frame_width / frame_height)
    crop_height = min(height, width * frame_height / frame_width)
    return Crop((width - crop_width) / 2, (height - crop_height) / 2, crop_width, crop_height)


def crop_for(
    upload: Picture, lens: Lens, frame_lens: FourNumbers, frame_size: tuple[int, int]
) -> Crop:
    """The part of the upload that a camera of `frame_lens` sees; raises InvalidUpload if it would
    see beyond the upload's borders.
    """
    fx, fy, cx, cy = frame_lens
    width, height = frame_size
    scale_x, scale_y = lens.fx / fx, lens.fy / fy  # upload pixels per frame pixel
    crop = Crop(lens.cx - cx * scale_x, lens.cy - cy * scale_y, width * scale_x, height * scale_y)
    outside = max(
        -crop.x, -crop.y, crop.x + crop.width - upload.width, crop.y + crop.height - upload.height
    )
    if outside > MAX_OUTSIDE_PX:
        seen = f"{upload.width} x {upload.height} pixels with fx={lens.fx:.1f} fy={lens.fy:.1f}"
        allowed = (
            f"a picture that shows all of the world's frame: at least {crop.width:.0f} x "
            f"{crop.height:.0f} pixels around the centre at this focal length"
        )
        raise InvalidUpload(
            "The picture shows less than the world's camera sees.",
            fields=(FieldProblem("image", seen, allowed),),
        )
    x, y = max(crop.x, 0.0), max(crop.y, 0.0)
    return Crop(x, y, min(crop.width, upload.width - x), min(crop.height, upload.height - y))


def _same_camera(crop: Crop, frame_lens: FourNumbers, frame_size: tuple[int, int]) -> Lens:
    """Of which the frame shows this crop."""
    fx, fy, cx, cy = frame_lens
    scale_x, scale_y = crop.width / frame_size[0], crop.height / frame_size[1]
    place = (crop.x + cx * scale_x, crop.y + cy * scale_y)
    return Lens(fx * scale_x, fy * scale_y, *place, source="session")


def _check_intrinsics(lens: FourNumbers, width: int, height: int) -> None:
    """Catch intrinsics of another resolution or in other units, the commonest mistakes."""
    fx, fy, cx, cy = lens
    fov_deg = math.degrees(2 * math.atan(0.5 * width / fx))
    centred = 0 <= cx <= width and 0 <= cy <= height
    if centred and MIN_FOV_DEG <= fov_deg <= MAX_FOV_DEG and 0.5 <= fx / fy <= 2:
        return
    seen = f"fx={fx:g} fy={fy:g} cx={cx:g} cy={cy:g} for {width} x {height} pixels"
    allowed = (
        f"pixels of the uploaded image: a centre inside it, a field of view of {MIN_FOV_DEG:g} to "
        f"{MAX_FOV_DEG:g} degrees (this one: {fov_deg:.1f}) and fx / fy within 0.5 to 2"
    )
    raise InvalidUpload(
        "The intrinsics don't fit the image.", fields=(FieldProblem("fx", seen, allowed),)
    )


def _check_view(observation: Observation) -> None:
    """Refuse a strip of which the frame would show next to nothing."""
    if observation.fov_deg >= MIN_FRAME_FOV_DEG:
        return
    width, height = observation.upload_size
    seen = f"{width} x {height} pixels, of which a frame shows {observation.fov_deg:.2g} degrees"
    frame_height, frame_width = observation.image.shape[:2]
    allowed = (
        f"at least {MIN_FRAME_FOV_DEG:g} degrees in the largest part with the frame's aspect, "
        f"{frame_width} x {frame_height}: crop the picture"
    )
    raise InvalidUpload(
        f"The image can't be used: {seen}.", fields=(FieldProblem("image", seen, allowed),)
    )


def _check_resolution(field: str, shape: tuple[int, ...], observation: Observation) -> None:
    """Refuse a map (H', W') with less than a pixel for each patch of the frame."""
    (width, height), crop = observation.upload_size, observation.crop
    frame_height, frame_width = observation.image.shape[:2]
    least_width = _whole(frame_width / PATCH_PX * width / crop.width)
    least_height = _whole(frame_height / PATCH_PX * height / crop.height)
    if shape[1] >= least_width and shape[0] >= least_height:
        return
    seen = f"{shape[1]} x {shape[0]} pixels for an image of {width} x {height}"
    allowed = (
        f"at least {least_width} x {least_height} pixels: one for each {PATCH_PX} x {PATCH_PX} of "
        f"the frame, {frame_width} x {frame_height}"
    )
    raise InvalidUpload(
        f"The {field} is too small: {seen}.", fields=(FieldProblem(field, seen, allowed),)
    )


def _whole(pixels: float) -> int:
    """Rounded up, but for the last bits of a division."""
    return math.ceil(round(pixels, 6))


def _check_sides(image: Image.Image, field: str) -> None:
    width, height = image.size
    if min(width, height) < MIN_IMAGE_SIDE:
        seen = f"{width} x {height} pixels"
        allowed = f"at least {MIN_IMAGE_SIDE} pixels on each side"
        raise InvalidUpload(
            f"The {field} is too small: {seen}.", fields=(FieldProblem(field, seen, allowed),)
        )


def _rgb(image: Image.Image) -> Image.Image:
    """Decoded, and copied only where it has to be: 50 megapixels are 150 MB."""
    if image.mode.startswith("I;16"):  # Pillow would clip it to its lowest 256 levels
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode != "RGB":
        return image.convert("RGB")
    image.load()
    return image


def _exif_focal_px(image: Image.Image) -> float | None:
    """The focal length in pixels; a rotation by 90 degrees leaves it as it is."""
    exif = image.getexif().get_ifd(ExifTags.IFD.Exif)
    focal_mm = exif.get(ExifTags.Base.FocalLengthIn35mmFilm)
    if not isinstance(focal_mm, int) or not 4 <= focal_mm <= 1200:
        return None
    return focal_mm / FILM_WIDTH_MM * max(image.size)


def _focal_px(fov_deg: float, width: int) -> float:
    return 0.5 * width / math.tan(math.radians(0.5 * fov_deg))


def _centred(upload: Picture, focal_px: float, source: str) -> Lens:
    return Lens(focal_px, focal_px, upload.width / 2, upload.height / 2, source)
