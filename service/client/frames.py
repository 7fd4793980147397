"""What the service answers: frames, and why it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.convert import plain
from service.errors import is_told
from service.poses import Array
from service.video import decode_frame, mux_images
from service.wire import world_pb2 as pb

MOST_CHARS = 200  # of a proxy's page
FIELD_PROBLEM = {"field", "seen", "allowed"}  # other services' errors have other members
Pixels = NDArray[np.uint8]  # (H, W, 3) RGB


class ServiceError(Exception):
    """The service refused; `problem` is its answer (RFC 9457)."""

    def __init__(self, problem: Mapping[str, Any]) -> None:
        detail = str(problem.get("detail", problem)).removesuffix(".")
        fields = [
            f"{one['field']}: "
            + ("" if is_told(one["seen"], detail) else f"got {one['seen']}, ")
            + f"allowed: {one['allowed']}"
            for one in problem.get("errors") or []
            if FIELD_PROBLEM <= set(one) and one["allowed"] not in detail
        ]
        super().__init__("; ".join([detail, *fields]))
        self.problem = dict(problem)

    @property
    def status(self) -> int:
        return int(self.problem.get("status", 0))

    @property
    def kind(self) -> str:
        """The stable name of the error, as in docs/errors.md: `unknown-session`."""
        return str(self.problem.get("problem") or self.problem.get("type", "")).rpartition(":")[2]


def problem_from(text: str, status: int) -> dict[str, Any]:
    """A refusal as it was sent, by the service or by a proxy in front of it."""
    try:
        sent = json.loads(text)
    except ValueError:
        sent = None
    if not isinstance(sent, dict):
        sent = {"detail": f"HTTP {status}" + (f": {text[:MOST_CHARS]}" if text else "")}
    return {"status": status} | sent


@dataclass(frozen=True)
class Frame:
    """One frame: what the service says about it, its encoded picture, its planes if asked for."""

    info: Mapping[str, Any]
    image: bytes
    planes: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    @property
    def number(self) -> int:
        return int(self.info["frame"])

    @property
    def camera(self) -> int:
        return int(self.info.get("camera") or 0)

    @property
    def coverage(self) -> float | None:
        """The share of this frame that the world's memory knew."""
        value: float | None = self.info["coverage"]
        return value

    @property
    def sequence(self) -> int | None:
        """Of the live pose that it answers."""
        value: int | None = self.info.get("sequence")
        return value

    @property
    def client_time_ms(self) -> float | None:
        """As it was sent with the pose."""
        value: float | None = self.info.get("client_time_ms")
        return value

    @property
    def pose(self) -> Array:
        """(4, 4) world_from_camera, OpenCV axes, metres: what was really rendered."""
        return np.asarray(self.info["matrix"], dtype=np.float64).reshape(4, 4)

    @property
    def depth_m(self) -> NDArray[np.float32] | None:
        """(h, w) z-depth on the latent grid, of streams with planes=["depth"]."""
        return self.planes.get("depth")

    def pixels(self) -> Pixels:
        """(H, W, 3) uint8 RGB; of streams that send pictures, not film."""
        return decode_frame(self.image)


def frame_from(message: pb.Frame) -> Frame:
    """A frame as a stream sends it."""
    planes: dict[str, NDArray[Any]] = {}
    for plane in message.planes:
        is_depth = plane.kind == pb.PLANE_KIND_DEPTH
        values: NDArray[Any] = np.frombuffer(plane.data, "<f4" if is_depth else np.uint8)
        name = "depth" if is_depth else "coverage"
        planes[name] = values.reshape(plane.height, plane.width)
    info = plain(message)
    del info["planes"]
    return Frame(info, message.image, planes)


def save_mp4(path: str | Path, pictures: Iterable[Pixels], frames_per_s: int = 15) -> None:
    """Pictures (H, W, 3) of one size with even sides, as H.264."""
    Path(path).write_bytes(mux_images(pictures, frames_per_s))
