"""Things that move, added to a finished world; without them it is the same seed's static one.

Each takes a free spot as large as its way. Sizes in metres, speeds per frame: from hardly moving
to 0.15 m or 10 degrees a frame.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from worker.scenes.draft import Draft, Rng
from worker.scenes.furniture import BOX, CYLINDER, SPHERE
from worker.scenes.motion import Motion

_TRIES = 240
_ROLES = ("accent", "fabric", "box", "metal", "wood", "rug")


class Mover:
    """Adds parts that share one motion about the upright axis through (x, z)."""

    def __init__(self, draft: Draft, x: float, z: float, angle: float, motion: Motion) -> None:
        self.draft, self.x, self.z, self.angle, self.motion = draft, x, z, angle, motion

    def part(
        self,
        kind: int,
        at: tuple[float, float, float],
        half: tuple[float, float, float],
        rng: Rng,
        role: str = "",
    ) -> None:
        """`at` = (x, up, z) of the part's centre from the axis, in the mover's own frame."""
        c, s = float(np.cos(self.angle)), float(np.sin(self.angle))
        arm = (c * at[0] + s * at[2], c * at[2] - s * at[0])
        material = self.draft.palette.material(role or str(rng.choice(_ROLES)), rng)
        motion = replace(self.motion, arm=arm)
        centre = (self.x + arm[0], -at[1], self.z + arm[1])
        self.draft.add(kind, centre, half, self.angle, material, motion)


def _there_and_back(rng: Rng, reach: float, angle: float) -> Motion:
    """To and fro by `reach` metres along the local x axis of `angle`."""
    rate = rng.uniform(0.02, 0.12) * np.pi / (2 * reach)
    slide = (reach * float(np.cos(angle)), 0.0, -reach * float(np.sin(angle)))
    return Motion(slide=slide, rate=float(rate), phase=float(rng.uniform(0, 2 * np.pi)))


def _turning(rng: Rng) -> Motion:
    return Motion(spin=float(rng.choice([-1, 1]) * np.radians(rng.uniform(1.5, 9))))


def cart(draft: Draft, rng: Rng, x: float, z: float, reach: float, angle: float) -> None:
    m = Mover(draft, x, z, angle, _there_and_back(rng, reach, angle))
    w, h = rng.uniform(0.25, 0.45), rng.uniform(0.15, 0.4)
    m.part(BOX, (0, h + 0.05, 0), (w, h, rng.uniform(0.2, 0.35)), rng)
    r = rng.uniform(0.1, 0.2)
    m.part(int(rng.integers(0, 3)), (rng.uniform(-0.1, 0.1), 2 * h + 0.05 + r, 0), (r, r, r), rng)


def person(draft: Draft, rng: Rng, x: float, z: float, reach: float, angle: float) -> None:
    """Shuttles, or walks round in a circle."""
    tall, round_and_round = rng.uniform(1.45, 1.8), rng.random() < 0.5
    motion = _there_and_back(rng, reach, angle)
    away = 0.0
    if round_and_round:
        away = reach
        speed = rng.choice([-1, 1]) * rng.uniform(0.02, 0.1)
        motion = Motion(spin=float(speed / max(reach, 0.3)))
    m = Mover(draft, x, z, angle, motion)
    legs, body = tall * 0.45, tall * 0.4
    m.part(CYLINDER, (away, legs / 2, 0), (0.15, legs / 2, 0.15), rng, "fabric")
    m.part(CYLINDER, (away, legs + body / 2, 0), (0.21, body / 2, 0.21), rng)
    m.part(SPHERE, (away, tall - 0.11, 0), (0.13, 0.13, 0.13), rng, "stone")


def ball(draft: Draft, rng: Rng, x: float, z: float, reach: float, angle: float) -> None:
    r = rng.uniform(0.15, 0.35)
    Mover(draft, x, z, angle, _there_and_back(rng, reach, angle)).part(
        SPHERE, (0, r, 0), (r, r, r), rng
    )


def balloon(draft: Draft, rng: Rng, x: float, z: float, reach: float, angle: float) -> None:
    r, bob = rng.uniform(0.18, 0.32), rng.uniform(0.2, 0.5)
    rate = rng.uniform(0.015, 0.08) * np.pi / (2 * bob)
    motion = Motion(
        slide=(0.3 * reach * float(np.cos(angle)), bob, 0.0),
        rate=float(rate),
        phase=float(rng.uniform(0, 6.28)),
    )
    m = Mover(draft, x, z, angle, motion)
    m.part(SPHERE, (0, rng.uniform(1.1, 1.5), 0), (r, r, r), rng)


def spinner(draft: Draft, rng: Rng, x: float, z: float, reach: float, angle: float) -> None:
    """A sign or a box that turns upon a still post."""
    h = rng.uniform(0.4, 0.9)
    post = draft.palette.material("stone", rng)
    draft.add(CYLINDER, (x, -h / 2, z), (0.08, h / 2, 0.08), 0.0, post)
    m = Mover(draft, x, z, angle, _turning(rng))
    w, tall = rng.uniform(0.25, 0.5), rng.uniform(0.15, 0.4)
    m.part(BOX, (0, h + tall, 0), (w, tall, rng.uniform(0.05, 0.3)), rng)


def carousel(draft: Draft, rng: Rng, x: float, z: float, reach: float, angle: float) -> None:
    """Two or three things that go round each other."""
    m = Mover(draft, x, z, angle, _turning(rng))
    arm, num = min(reach, rng.uniform(0.4, 0.8)), int(rng.integers(2, 4))
    for k in range(num):
        r, turn = rng.uniform(0.14, 0.28), 2 * np.pi * k / num
        at = (arm * float(np.cos(turn)), rng.uniform(0.3, 1.2), arm * float(np.sin(turn)))
        m.part(int(rng.integers(0, 3)), at, (r, r, r), rng)


def gate(draft: Draft, rng: Rng, x: float, z: float, reach: float, angle: float) -> None:
    """A door that swings about a post."""
    motion = Motion(
        swing=float(rng.uniform(0.4, 1.2)),
        rate=float(rng.uniform(0.05, 0.15)),
        phase=float(rng.uniform(0, 6.28)),
    )
    w, h = min(reach, rng.uniform(0.6, 0.9)) / 2, rng.uniform(0.7, 1.0)
    draft.add(BOX, (x, -h, z), (0.06, h, 0.06), 0.0, draft.palette.material("wood", rng))
    m = Mover(draft, x, z, angle, motion)
    m.part(BOX, (w + 0.08, h, 0), (w, h, 0.04), rng, "door")


Build = Callable[[Draft, Rng, float, float, float, float], None]
MOVERS: tuple[Build, ...] = (cart, person, person, ball, balloon, spinner, carousel, gate)


def add_movers(draft: Draft, rng: Rng) -> None:
    """One to three moving things on free spots, fewer where a crowded world has none."""
    wanted = int(rng.integers(1, 4))
    for attempt in range(_TRIES):
        reach = rng.uniform(0.4, 1.3) * (1 - 0.8 * attempt / _TRIES)
        radius = reach + 0.35
        x, z = (float(v) for v in rng.uniform(-1, 1, 2) * (draft.room_high[[0, 2]] - radius))
        if wanted and draft.is_free(x, z, radius):
            build = MOVERS[int(rng.integers(len(MOVERS)))]
            build(draft, rng, x, z, float(reach), float(rng.uniform(-np.pi, np.pi)))
            draft.taken.append((x, z, radius))
            wanted -= 1
