"""Where a live camera will be when its frame arrives.

A frame shows the world some time after its pose was sent: the time to render it and the way back.
With `extrapolate`, the pose goes to the worker as it will be then, by constant velocity from the
last two poses: position linearly, rotation about its axis. Trade-off: a camera that turns back is
overshot for one frame; the lead is capped, so that an outage does not throw it far away.
"""

from __future__ import annotations

import math
import statistics
from collections import OrderedDict, deque
from dataclasses import dataclass

import numpy as np

from service.poses import MAX_DISTANCE_M, Array

MAX_LEAD_S = 0.25
MIN_GAP_S, MAX_GAP_S = 0.002, 0.5  # between two poses that tell a velocity
LATENCIES = 31  # that make the median
ASKED = 256  # poses whose frames may still come


@dataclass(frozen=True)
class Sighting:
    """A pose (4, 4) as a client sent it, and when, by the client's clock or ours."""

    pose: Array
    at_s: float


def ahead(before: Sighting, now: Sighting, lead_s: float) -> Array:
    """(4, 4): `now`'s camera `lead_s` later; where it is, if the two tell no velocity, or one that
    leaves the world.
    """
    gap_s = now.at_s - before.at_s
    if not MIN_GAP_S <= gap_s <= MAX_GAP_S:
        return now.pose
    part = min(max(lead_s, 0.0), MAX_LEAD_S) / gap_s
    pose = np.eye(4)
    turned = before.pose[:3, :3].T @ now.pose[:3, :3]
    pose[:3, :3] = now.pose[:3, :3] @ _power(turned, part)
    pose[:3, 3] = now.pose[:3, 3] + part * (now.pose[:3, 3] - before.pose[:3, 3])
    return pose if np.abs(pose[:3, 3]).max() <= MAX_DISTANCE_M else now.pose


def _power(rotation: Array, part: float) -> Array:
    """The rotation by `part` of the angle about the same axis (Rodrigues)."""
    axis = np.array(
        [
            rotation[2, 1] - rotation[1, 2],
            rotation[0, 2] - rotation[2, 0],
            rotation[1, 0] - rotation[0, 1],
        ]
    )
    length = float(np.linalg.norm(axis))
    if length < 1e-9:  # no turn, or half a turn, whose sense nobody knows
        return np.eye(3)
    angle = part * math.atan2(length, float(np.trace(rotation)) - 1.0)
    x, y, z = axis / length
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return np.asarray(np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross)


class Latency:
    """From the arrival of a live pose to its frame, over the last ones."""

    def __init__(self) -> None:
        self._asked: OrderedDict[str, float] = OrderedDict()  # request id -> when
        self._last_s: deque[float] = deque(maxlen=LATENCIES)
        self._unanswered_s: float | None = None  # since when there was no frame

    def asked(self, request_id: str, at_s: float) -> None:
        self._asked[request_id] = at_s
        if self._unanswered_s is None:
            self._unanswered_s = at_s
        if len(self._asked) > ASKED:  # replaced by newer poses, never rendered
            self._asked.popitem(last=False)

    def answered(self, request_id: str, at_s: float) -> None:
        """Nothing, if this stream did not ask for it."""
        asked_s = self._asked.pop(request_id, None)
        if asked_s is not None:
            self._last_s.append(at_s - asked_s)
            self._unanswered_s = None

    def silent_s(self, now_s: float) -> float:
        """For how long poses have been asked for and none was shown."""
        return 0.0 if self._unanswered_s is None else now_s - self._unanswered_s

    @property
    def median_s(self) -> float | None:
        return statistics.median(self._last_s) if self._last_s else None


class Motion:
    """The cameras of one stream."""

    def __init__(self) -> None:
        self._last: dict[int, Sighting] = {}

    def predicted(self, camera: int, now: Sighting, lead_s: float) -> Array:
        """Note a pose; where that camera will be `lead_s` later."""
        before = self._last.get(camera)
        self._last[camera] = now
        return now.pose if before is None else ahead(before, now, lead_s)
