"""The multipart form that opens a session, and how it becomes a frame-sized observation."""

from __future__ import annotations

import asyncio
import hashlib
import math
from dataclasses import dataclass
from typing import Literal, Self

from fastapi import UploadFile
from pydantic import BaseModel, ConfigDict, Field, model_validator

from service.errors import FieldProblem, InvalidUpload
from service.gateway import Gateway
from service.limits import MAX_FOV_DEG, MIN_FOV_DEG
from service.uploads.images import Observation, observation_from

LENS = ("fx", "fy", "cx", "cy")


class SessionForm(BaseModel):
    """Give `image` (PNG, JPEG or WebP) or `sample`; everything else is optional."""

    model_config = ConfigDict(extra="forbid")

    image: UploadFile | None = None
    sample: str | None = Field(None, description="a name from /v1/samples")
    depth: UploadFile | None = Field(
        None, description="of the image: 16-bit PNG (millimetres) or float32 NPY (metres), z-depth"
    )
    fov_deg: float | None = Field(
        None, ge=MIN_FOV_DEG, le=MAX_FOV_DEG, description="of the whole image, horizontally"
    )
    fx: float | None = Field(None, gt=0, description="pixels of the whole image; all four or none")
    fy: float | None = Field(None, gt=0)
    cx: float | None = None
    cy: float | None = None
    seed: int | None = Field(
        None, ge=0, lt=2**53, description="at random if not given; exact in every JSON"
    )
    memory: Literal["latent", "null", "rgb"] = "latent"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        given = [getattr(self, name) is not None for name in LENS]
        if (self.image is None) == (self.sample is None):
            raise ValueError("give either `image` or `sample`")
        if any(given) and not all(given):
            raise ValueError("give all of fx, fy, cx, cy or none")
        if self.sample is not None and (any(given) or self.depth or self.fov_deg is not None):
            raise ValueError("a sample brings its own depth and lens")
        if any(given) and self.fov_deg is not None:
            raise ValueError("give fx, fy, cx, cy or fov_deg, not both")
        return self

    @property
    def intrinsics(self) -> tuple[float, float, float, float] | None:
        if self.fx is None or self.fy is None or self.cx is None or self.cy is None:
            return None
        return self.fx, self.fy, self.cx, self.cy


@dataclass(frozen=True)
class Source:
    """The bytes a session is opened from."""

    image: bytes
    depth: bytes | None
    fov_deg: float | None

    def digest(self) -> str:
        parts = (hashlib.sha256(part or b"").hexdigest() for part in (self.image, self.depth))
        return ".".join(parts)


async def read_source(form: SessionForm, gateway: Gateway) -> Source:
    """The upload or the sample; raises InvalidUpload before reading a file that is too large."""
    if form.sample is not None:
        sample = gateway.samples.chosen(form.sample)
        depth = sample.depth.read_bytes() if sample.depth else None
        return Source(sample.picture.read_bytes(), depth, sample.card.fov_deg)
    assert form.image is not None
    limit = gateway.settings.max_upload_bytes
    image = await _read(form.image, "image", limit)
    depth = None if form.depth is None else await _read(form.depth, "depth", limit)
    return Source(image, depth, form.fov_deg)


async def observe(source: Source, form: SessionForm, gateway: Gateway) -> Observation:
    """Decode and normalise in a thread; raises InvalidUpload naming the field."""
    async with gateway.heavy:
        observation = await asyncio.to_thread(
            observation_from,
            source.image,
            source.depth,
            gateway.frame_size,
            gateway.upload_limits,
            fov_deg=source.fov_deg,
            intrinsics=form.intrinsics,
        )
    if form.intrinsics is not None:
        _check_lens(form.intrinsics, observation.upload_size)
    return observation


def _check_lens(lens: tuple[float, float, float, float], size: tuple[int, int]) -> None:
    """Catch intrinsics of another resolution or in other units, the commonest mistakes."""
    fx, fy, cx, cy = lens
    width, height = size
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


async def _read(file: UploadFile, field: str, limit: int) -> bytes:
    if file.size is not None and file.size > limit:
        problem = FieldProblem(field, f"{file.size:,} bytes", f"1 to {limit:,} bytes")
        raise InvalidUpload(f"The {field} is too large.", fields=(problem,))
    return await file.read()
