"""The multipart forms that bring pictures, and how they become frame-sized observations."""

from __future__ import annotations

import asyncio
import hashlib
import io
from dataclasses import dataclass
from typing import Literal, Self

from fastapi import UploadFile
from pydantic import Field, ValidationError, model_validator

from service.control.sessions import Intrinsics
from service.errors import FieldProblem, InvalidUpload
from service.gateway import Gateway
from service.limits import MAX_FOV_DEG, MAX_INTEGER, MIN_FOV_DEG, PATCH_PX
from service.rest.problems import invalid_request
from service.schemas import POSE_FORM, Axes, Closed, PoseIn
from service.store.segments import Upload
from service.uploads.images import Files, FourNumbers, Observation, observation_from

LENS = ("fx", "fy", "cx", "cy")
FILES = ("image", "depth", "mask")
DIGESTED_BYTES = 1 << 20  # at a time


class PictureForm(Closed):
    """A picture and what is known of it."""

    image: UploadFile | None = Field(None, description="PNG, JPEG or WebP")
    depth: UploadFile | None = Field(
        None,
        description="of the image: 16-bit PNG (millimetres) or float32 NPY (metres), z-depth; in "
        f"any resolution of the image's aspect, at least a pixel for each {PATCH_PX} x {PATCH_PX} "
        "of the frame",
    )
    mask: UploadFile | None = Field(
        None,
        description="of the image, in any resolution that depth may have: PNG or WebP, not black "
        "where nothing is to be remembered",
    )
    fov_deg: float | None = Field(
        None, ge=MIN_FOV_DEG, le=MAX_FOV_DEG, description="of the whole image, horizontally"
    )
    fx: float | None = Field(None, gt=0, description="pixels of the whole image; all four or none")
    fy: float | None = Field(None, gt=0)
    cx: float | None = None
    cy: float | None = None
    scale_m: float | None = Field(
        None,
        ge=0.05,
        le=200,
        description="without depth: metres to what stands at the image's centre",
    )

    @model_validator(mode="after")
    def _one_lens(self) -> Self:
        given = [getattr(self, name) is not None for name in LENS]
        if any(given) and not all(given):
            raise ValueError("give all of fx, fy, cx, cy or none")
        if any(given) and self.fov_deg is not None:
            raise ValueError("give fx, fy, cx, cy or fov_deg, not both")
        if self.depth is not None and self.scale_m is not None:
            raise ValueError("depth brings its own scale: give `depth` or `scale_m`, not both")
        return self

    @property
    def intrinsics(self) -> FourNumbers | None:
        if self.fx is None or self.fy is None or self.cx is None or self.cy is None:
            return None
        return self.fx, self.fy, self.cx, self.cy


class SessionForm(PictureForm):
    """Give `image` (PNG, JPEG or WebP) or `sample`; everything else is optional."""

    sample: str | None = Field(None, description="a name from /v1/samples")
    seed: int | None = Field(
        None, ge=0, lt=MAX_INTEGER, description="at random if not given; exact in every JSON"
    )
    memory: Literal["latent", "null", "rgb"] = "latent"

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.image is None) == (self.sample is None):
            raise ValueError("give either `image` or `sample`")
        own = (self.depth, self.mask, self.fov_deg, self.fx, self.scale_m)
        if self.sample is not None and any(value is not None for value in own):
            raise ValueError("a sample brings its own depth and lens")
        return self


class ObservationForm(PictureForm):
    """What a camera really saw, and from where."""

    image: UploadFile = Field(description="PNG, JPEG or WebP")
    pose: str = Field(
        max_length=2000,
        description=f"JSON: {POSE_FORM}, world_from_camera, metres",
    )
    axes: Axes = Field("opencv", description="the convention of `pose`")

    def place(self) -> PoseIn:
        """Raises InvalidRequest naming `pose`."""
        try:
            return PoseIn.model_validate_json(self.pose)
        except ValidationError as error:
            raise invalid_request(error, within="pose") from None


@dataclass(frozen=True)
class Source:
    """The files that become an observation, on disk if they are large, and the lens that a sample
    brings.
    """

    image: UploadFile
    depth: UploadFile | None
    mask: UploadFile | None
    fov_deg: float | None

    async def digest(self) -> str:
        return ".".join([await _digest(file) for file in (self.image, self.depth, self.mask)])

    async def read(self) -> Files:
        """All of them in memory: hold `gateway.heavy` meanwhile."""
        return Files(await _whole(self.image), await _part(self.depth), await _part(self.mask))


def source_of(form: PictureForm, gateway: Gateway) -> Source:
    """The upload or the sample; raises InvalidUpload for a file that is too large, unread."""
    if isinstance(form, SessionForm) and form.sample is not None:
        sample = gateway.samples.chosen(form.sample)
        depth = upload_file(sample.depth.read_bytes()) if sample.depth else None
        picture = upload_file(sample.picture.read_bytes())
        return Source(picture, depth, None, sample.card.fov_deg)
    assert form.image is not None
    for name in FILES:
        _check_size(getattr(form, name), name, gateway.settings.max_upload_bytes)
    return Source(form.image, form.depth, form.mask, form.fov_deg)


def upload_file(data: bytes) -> UploadFile:
    """What is here already, as if it had been uploaded."""
    return UploadFile(io.BytesIO(data), size=len(data))


async def observe(
    source: Source, form: PictureForm, gateway: Gateway, frame: Intrinsics | None = None
) -> Observation:
    """Decode and normalise in a thread, for the camera `frame` if the world has one already;
    raises InvalidUpload naming the field."""
    async with gateway.heavy:
        return await asyncio.to_thread(
            observation_from,
            await source.read(),
            gateway.frame_size if frame is None else (frame.width, frame.height),
            gateway.upload_limits,
            fov_deg=source.fov_deg,
            intrinsics=form.intrinsics,
            frame_lens=None if frame is None else (frame.fx, frame.fy, frame.cx, frame.cy),
        )


def upload_of(observation: Observation) -> Upload:
    return Upload(observation.image, observation.depth_m, observation.mask)


def _check_size(file: UploadFile | None, field: str, limit: int) -> None:
    if file is not None and file.size is not None and file.size > limit:
        problem = FieldProblem(field, f"{file.size:,} bytes", f"1 to {limit:,} bytes")
        raise InvalidUpload(f"The {field} is too large.", fields=(problem,), limit="upload_bytes")


async def _whole(file: UploadFile) -> bytes:
    await file.seek(0)
    return await file.read()


async def _part(file: UploadFile | None) -> bytes | None:
    return None if file is None else await _whole(file)


async def _digest(file: UploadFile | None) -> str:
    found = hashlib.sha256()
    if file is not None:
        await file.seek(0)
        while part := await file.read(DIGESTED_BYTES):
            found.update(part)
    return found.hexdigest()
