"""What a file that anybody may have made can say of a World and its frames: what is passed on to
clients unchanged has to fit into every notation, and what a World is opened with has to be what a
session may be opened with here.
"""

from __future__ import annotations

import math
from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from service.control.requests import Pose
from service.control.sessions import Intrinsics, NewSession
from service.errors import InvalidRequest
from service.limits import MAX_CAMERAS, MAX_FOV_DEG, MAX_INTEGER, MIN_FRAME_FOV_DEG
from service.poses import pose_from_matrix
from service.settings import MAX_FRAME_SIDE, MIN_FRAME_SIDE, SIDE_STEP
from service.store.segments import FrameMeta

MAX_TEXT = 200  # characters
MAX_TIME_S = 2**37  # the year 6325: the longest that every notation can tell
MAX_CENTRE_PX = 1e9  # a crop may lie far beside the lens's centre
MAX_ASPECT = 2.0  # of a pixel, either way
ROUNDING = 1e-6  # a lens was computed from the upload's

Count = Annotated[int, Field(ge=0, lt=MAX_INTEGER)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Focal = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Centre = Annotated[float, Field(ge=-MAX_CENTRE_PX, le=MAX_CENTRE_PX)]
Stage = Annotated[str, Field(max_length=64)]
Side = Annotated[int, Field(ge=MIN_FRAME_SIDE, le=MAX_FRAME_SIDE, multiple_of=SIDE_STEP)]


class FrameBounds(FrameMeta):
    camera: int = Field(0, ge=0, lt=MAX_CAMERAS)
    pose: list[Finite] = Field(min_length=16, max_length=16)
    coverage: Finite
    num_points: Count = 0
    num_bytes: Count = 0
    request_id: str = Field(max_length=MAX_TEXT)
    pose_index: Count = 0
    sequence: int | None = Field(None, ge=0, lt=2**63)
    client_time_ms: Finite | None = None
    timings_ms: dict[Stage, Finite] = Field({}, max_length=64)
    created_s: float = Field(ge=0, lt=MAX_TIME_S)


class LensBounds(Intrinsics):
    """As the gateway makes them of an upload's."""

    fx: Focal
    fy: Focal
    cx: Centre
    cy: Centre
    width: Side
    height: Side

    @model_validator(mode="after")
    def _sees(self) -> Self:
        widest_deg = math.degrees(2 * math.atan(0.5 * self.width / self.fx))  # with this focal
        is_wide = widest_deg > MAX_FOV_DEG + ROUNDING
        if is_wide or self.fov_deg < MIN_FRAME_FOV_DEG - ROUNDING:
            raise ValueError(f"a field of view of {MIN_FRAME_FOV_DEG:g} to {MAX_FOV_DEG:g} degrees")
        if abs(math.log(self.fx / self.fy)) > math.log(MAX_ASPECT) + ROUNDING:
            raise ValueError(f"fx / fy within {1 / MAX_ASPECT:g} to {MAX_ASPECT:g}")
        return self


class SpecBounds(NewSession):
    seed: Count = 0
    intrinsics: LensBounds
    pose: Pose

    @field_validator("pose")
    @classmethod
    def _is_rigid(cls, pose: Pose) -> Pose:
        try:
            pose_from_matrix(pose, "opencv", "pose")
        except InvalidRequest as error:
            raise ValueError(error.fields[0].allowed) from None
        return pose
