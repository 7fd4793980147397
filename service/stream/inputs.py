"""Keyboard and gamepad: the client says what is held down, the server moves the camera.

While a stick is out of its centre the camera advances by speed x time, as often as frames can be
made use of; each step is a live pose, so a slow model skips steps and keeps the pace.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from service.poses import Action, Array, expand

DEFAULT_MOVE_M_PER_S = 1.4  # a person walks so
DEFAULT_TURN_DEG_PER_S = 60.0
MAX_STEP_S = 0.25  # an outage does not throw the camera far away
RUN = 2.0  # times as fast while shift is held

# forward, right, up, yaw, pitch
Sticks = tuple[float, float, float, float, float]
KEYS: dict[str, Sticks] = {
    "w": (1, 0, 0, 0, 0),
    "s": (-1, 0, 0, 0, 0),
    "d": (0, 1, 0, 0, 0),
    "a": (0, -1, 0, 0, 0),
    "e": (0, 0, 1, 0, 0),
    "q": (0, 0, -1, 0, 0),
    "arrowright": (0, 0, 0, 1, 0),
    "arrowleft": (0, 0, 0, -1, 0),
    "arrowup": (0, 0, 0, 0, 1),
    "arrowdown": (0, 0, 0, 0, -1),
    "shift": (0, 0, 0, 0, 0),
}


@dataclass(frozen=True)
class Held:
    """What is held, as speeds."""

    move_m_per_s: tuple[float, float, float]  # forward, right, up
    turn_deg_per_s: tuple[float, float]  # yaw, pitch

    @property
    def moves(self) -> bool:
        return any(self.move_m_per_s) or any(self.turn_deg_per_s)

    def advanced(self, pose: Array, elapsed_s: float) -> Array:
        """(4, 4): the camera after so much time."""
        step_s = min(elapsed_s, MAX_STEP_S)
        forward, right, up = (step_s * speed for speed in self.move_m_per_s)
        yaw, pitch = (step_s * speed for speed in self.turn_deg_per_s)
        action = Action(forward, right, up, yaw, pitch)
        moved: Array = expand(pose, [action], math.inf, math.inf, 1)[0]
        return moved


def held(sticks: Sticks, keys: Iterable[str], move_m_per_s: float, turn_deg_per_s: float) -> Held:
    """Sticks and keys together; each direction is at most full."""
    down = [key.lower() for key in keys]
    run = RUN if "shift" in down else 1.0
    every = [sticks, *(KEYS[key] for key in down)]
    forward, right, up, yaw, pitch = (
        min(1.0, max(-1.0, sum(parts))) for parts in zip(*every, strict=True)
    )
    move = run * move_m_per_s
    return Held(
        (move * forward, move * right, move * up), (turn_deg_per_s * yaw, turn_deg_per_s * pitch)
    )
