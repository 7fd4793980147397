"""What clients send and get as JSON; unknown fields are refused.

Shapes and ranges are checked here, geometry in poses.py: a pose that is no rigid transform deserves
a better answer than a validator's. Lists are checked up to the first item that is wrong: two
megabytes of nonsense would make a hundred megabytes of findings.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, Field, model_validator

from service.control.requests import RequestState
from service.control.sessions import SessionState
from service.limits import MAX_ACTIONS, MAX_CAMERAS, MAX_FIELDS
from service.poses import (
    DEFAULT_STEP_DEG,
    DEFAULT_STEP_M,
    Action,
    Array,
    check_length,
    expand,
    flat,
    pose_from_matrix,
    pose_from_quaternion,
)

Axes = Literal["opencv", "opengl", "unity", "unreal", "ros"]
Metres = Annotated[float, Field(ge=-1000, le=1000)]
Degrees = Annotated[float, Field(ge=-3600, le=3600)]
Camera = Annotated[int, Field(ge=0, lt=MAX_CAMERAS)]
POSE_FORM = (
    '{"matrix": [16 numbers, row by row]} or {"position": [x, y, z], "quaternion": [x, y, z, w]}'
)
FlatPose = list[float]  # 16 numbers, row-major world_from_camera, OpenCV axes, metres


class Closed(BaseModel):
    """A message with no room for unknown fields."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _checked(cls, value: object) -> object:
        return _counted(value)


def _counted(value: object) -> object:
    """Refuses more fields than anything has before each of them makes a finding."""
    if isinstance(value, dict) and len(value) > MAX_FIELDS:
        raise ValueError(f"at most {MAX_FIELDS} fields, not {len(value):,}")
    return value


def _joined_rows(matrix: object) -> object:
    """Four rows of four, as numpy's `tolist` writes them, as 16 numbers."""
    rows = matrix if isinstance(matrix, list) else []
    if not any(isinstance(row, list) for row in rows):
        return matrix
    if len(rows) != 4 or any(not isinstance(row, list) or len(row) != 4 for row in rows):
        raise ValueError("16 numbers, row by row, or 4 rows of 4 numbers")
    return [number for row in rows for number in row]


Matrix = Annotated[
    list[float] | None,
    FailFast(),
    BeforeValidator(_joined_rows, json_schema_input_type=list[float] | list[list[float]] | None),
]


class PoseIn(Closed):
    """A camera: `matrix`, or `position` with `quaternion`."""

    matrix: Matrix = Field(
        None,
        description="16 numbers, row-major 4x4 world_from_camera, metres; also 4 rows of 4",
    )
    position: list[float] | None = Field(None, fail_fast=True, description="x, y, z in metres")
    quaternion: list[float] | None = Field(
        None, fail_fast=True, description="x, y, z, w of unit length"
    )

    @model_validator(mode="before")
    @classmethod
    def _checked(cls, value: object) -> object:
        if isinstance(value, list):
            raise ValueError(POSE_FORM)
        return _counted(value)

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        given = self.matrix is not None, self.position is not None, self.quaternion is not None
        if given not in ((True, False, False), (False, True, True)):
            raise ValueError("give either `matrix` or `position` and `quaternion`")
        return self

    def pose(self, axes: str, field: str) -> Array:
        """(4, 4) in OpenCV axes; raises InvalidRequest naming `field`."""
        if self.matrix is not None:
            return pose_from_matrix(self.matrix, axes, f"{field}.matrix")
        assert self.position is not None and self.quaternion is not None
        return pose_from_quaternion(self.position, self.quaternion, axes, field)


class ActionIn(Closed):
    """One movement; its parts happen at the same time. Yaw turns right, pitch looks up."""

    forward_m: Metres = 0.0
    right_m: Metres = 0.0
    up_m: Metres = 0.0
    yaw_deg: Degrees = 0.0
    pitch_deg: Degrees = 0.0

    @model_validator(mode="after")
    def _moves(self) -> Self:
        if not self.model_fields_set:
            raise ValueError(f"give at least one of {', '.join(type(self).model_fields)}")
        return self


class PathIn(Closed):
    """A path of `poses`, or `actions` that continue from the session's last camera."""

    poses: list[PoseIn] | None = Field(None, fail_fast=True, min_length=1)
    actions: list[ActionIn] | None = Field(
        None, fail_fast=True, min_length=1, max_length=MAX_ACTIONS
    )
    axes: Axes = Field("opencv", description="the convention of `poses`")
    step_m: float = Field(DEFAULT_STEP_M, ge=0.001, le=10, description="of actions, per frame")
    step_deg: float = Field(DEFAULT_STEP_DEG, ge=0.01, le=180, description="of actions, per frame")
    client_time_ms: float | None = Field(None, description="echoed with every frame")
    camera: Camera = Field(0, description="which of the world's cameras walks")

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if (self.poses is None) == (self.actions is None):
            raise ValueError("give either `poses` or `actions`")
        return self

    def flat_poses(self, start: Array, max_poses: int) -> list[FlatPose]:
        """The path in OpenCV axes; `start` is where actions begin. Raises InvalidRequest."""
        if self.actions is not None:
            actions = [Action(**action.model_dump()) for action in self.actions]
            path = expand(start, actions, self.step_m, self.step_deg, max_poses)
            return [flat(pose) for pose in path]
        assert self.poses is not None
        check_length(len(self.poses), max_poses)
        return [
            flat(pose.pose(self.axes, f"poses[{index}]")) for index, pose in enumerate(self.poses)
        ]


class GenerationIn(PathIn):
    """A path, and whom to tell once it is done."""

    webhook: str | None = Field(
        None, max_length=2000, description="URL that gets a signed POST; the server lists which may"
    )


class Intrinsics(Closed):
    fx: float
    fy: float
    cx: float
    cy: float


class UploadOut(Closed):
    """What became of the uploaded image."""

    width: int = Field(description="of the upload, upright")
    height: int
    crop: tuple[float, float, float, float] = Field(
        description="x, y, width, height that became the frame"
    )
    lens_source: Literal["intrinsics", "fov_deg", "exif", "default"]
    has_depth: bool


class SessionOut(Closed):
    id: str
    state: SessionState
    version: int = Field(description="also the ETag; changes with every commit")
    memory: str
    seed: int
    width: int
    height: int
    fov_deg: float = Field(description="of the frame, horizontally")
    intrinsics: Intrinsics = Field(description="of the frame, pixels")
    num_frames: int = Field(description="frames 0 .. num_frames - 1 were made")
    num_points: int
    num_bytes: int
    coverage: float | None = None
    weights: str | None = None
    error: dict[str, Any] | None = Field(None, description="a problem, when the state is failed")
    branch: int = Field(description="a rewind begins a new one; frames are counted within it")
    branch_first_frame: int = Field(description="frames before it came from another branch")
    origin: str | None = Field(None, description="fork:<session> or import:<session>")
    created_at: datetime
    expires_at: datetime
    init_request: str | None = Field(None, description="the request that makes frame 0")
    upload: UploadOut | None = Field(None, description="only in the answer to a creation")


class SessionList(Closed):
    sessions: list[SessionOut]
    next_cursor: str | None = None


class RequestResult(Closed):
    """What a fork, rewind or snapshot came to."""

    session: str | None = Field(None, description="the fork")
    branch: int | None = Field(None, description="that the rewind began")
    num_frames: int
    name: str | None = Field(None, description="of the snapshot")


class GenerationOut(Closed):
    """How far a generation has come."""

    id: str
    kind: str = Field(description="init, observe, generate, fork, rewind or snapshot")
    state: RequestState
    total: int = Field(description="frames asked for")
    done: int
    first_frame: int | None = None
    last_frame: int | None = None
    error: dict[str, Any] | None = None
    result: RequestResult | None = Field(None, description="of a fork, rewind or snapshot")
    created_at: datetime
    cancel_requested: bool = False


class GenerationList(Closed):
    generations: list[GenerationOut]
    next_cursor: str | None = None


class FrameOut(Closed):
    frame: int
    matrix: FlatPose = Field(description="row-major world_from_camera, OpenCV axes, metres")
    coverage: float | None = Field(None, description="share of the frame that memory knew")
    timings_ms: dict[str, float] = {}
    request_id: str | None = Field(None, description="the generation it belongs to")
    kind: str | None = Field(None, description="init, generate or live")
    sequence: int | None = None
    client_time_ms: float | None = None
    created_at: datetime
    media_type: str
    image: str = Field(description="path of the encoded image")
    camera: int = Field(0, description="which of the world's cameras")
    branch: int = Field(1, description="rewinding starts a new one")


class FrameList(Closed):
    frames: list[FrameOut]
    next_after: int = Field(description="`after` of the next call")


class MemoryOut(Closed):
    memory: str
    num_points: int
    num_bytes: int
    num_segments: int
    coverage: float | None = None


class SnapshotOut(Closed):
    """A named state of a world."""

    name: str
    branch: int
    num_frames: int
    created_at: datetime


class SnapshotList(Closed):
    snapshots: list[SnapshotOut]


class SampleOut(Closed):
    name: str
    title: str
    description: str
    image: str
    fov_deg: float
    has_depth: bool


class SampleList(Closed):
    samples: list[SampleOut]


class FieldOut(Closed):
    field: str
    seen: str
    allowed: str


class ProblemOut(BaseModel):
    """RFC 9457; every error of every endpoint has this form."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[FieldOut] = []
    request_id: str
    retry_after_s: float | None = None
    hint: str = Field("", description="what to do about it")
    documentation: str = Field("", description="path of the explanation")
