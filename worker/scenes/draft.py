"""A world while it is being built: growing lists of primitives, materials, lamps and taken spots.

Numpy on the CPU, one generator per scene, so that a seed means the same world everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from worker.scenes.materials import Material, Palette
from worker.scenes.motion import STILL, Motion

Rng = np.random.Generator
Vector = NDArray[np.float32]
MAX_PRIMITIVES = 60  # before anything that moves is added


@dataclass
class Draft:
    """One world as growing lists; y = 0 is the floor."""

    room_low: Vector
    room_high: Vector
    palette: Palette
    is_open: bool = False  # no ceiling: the sky is seen above the walls
    kind: list[int] = field(default_factory=list)
    centre: list[tuple[float, float, float]] = field(default_factory=list)
    half: list[tuple[float, float, float]] = field(default_factory=list)
    rotation: list[float] = field(default_factory=list)
    motion: list[tuple[float, ...]] = field(default_factory=list)
    texture: list[int] = field(default_factory=list)  # the room's six faces come first
    period: list[tuple[float, float]] = field(default_factory=list)
    phase: list[tuple[float, float]] = field(default_factory=list)
    tint: list[Vector] = field(default_factory=list)
    light: list[list[float]] = field(default_factory=list)
    light_colour: list[list[float]] = field(default_factory=list)
    ambient: list[float] = field(default_factory=list)
    sky: list[list[float]] = field(default_factory=lambda: [[0.0] * 3, [0.0] * 3])
    taken: list[tuple[float, float, float]] = field(default_factory=list)  # x, z, radius

    @property
    def atlas(self) -> list[NDArray[np.int32]]:
        return self.palette.atlas

    @property
    def height(self) -> float:
        return float(-self.room_low[1])

    def paint(self, material: Material) -> None:
        self.texture.append(material.texture)
        self.period.append(material.period)
        self.phase.append(material.phase)
        self.tint.append(material.tint)

    def add(
        self,
        kind: int,
        centre: tuple[float, float, float],
        half: tuple[float, float, float],
        rotation: float,
        material: Material,
        motion: Motion = STILL,
    ) -> None:
        self.kind.append(kind)
        self.centre.append(centre)
        self.half.append(half)
        self.rotation.append(rotation)
        self.motion.append(motion.row())
        self.paint(material)

    def is_free(self, x: float, z: float, radius: float) -> bool:
        return all(np.hypot(x - tx, z - tz) > radius + tr for tx, tz, tr in self.taken)


def new_draft(rng: Rng, width: float, height: float, depth: float, is_open: bool = False) -> Draft:
    low = np.array([-width / 2, -height, -depth / 2], dtype=np.float32)
    high = np.array([width / 2, 0, depth / 2], dtype=np.float32)
    return Draft(low, high, Palette(rng), is_open)


def light_up(draft: Draft, rng: Rng) -> None:
    """Lamps or a sun, and how the camera that films this world is exposed and balanced."""
    balance = rng.uniform(0.78, 1.28) * (1 + rng.uniform(-0.07, 0.07, 3))
    if draft.is_open:
        _daylight(draft, rng, balance)
    else:
        _lamps(draft, rng, balance)


def _lamps(draft: Draft, rng: Rng, balance: NDArray[np.float64]) -> None:
    warm = np.array([1.0, rng.uniform(0.88, 0.97), rng.uniform(0.74, 0.92)])
    cool = np.array([rng.uniform(0.85, 0.95), 0.95, 1.0])
    y = -draft.height + 0.35
    side = rng.choice([-1, 1], 2)
    for colour, sign, power in (
        (warm, 1, rng.uniform(1.0, 1.4)),
        (cool, -1, rng.uniform(0.5, 0.8)),
    ):
        where = sign * side * rng.uniform(0.15, 0.55, 2) * draft.room_high[[0, 2]]
        draft.light.append([float(where[0]), y, float(where[1])])
        draft.light_colour.append([float(c) for c in colour * power * balance])
    ambient = rng.uniform(0.42, 0.55) * (0.5 * warm + 0.5 * cool) * balance
    draft.ambient = [float(c) for c in ambient]


def _daylight(draft: Draft, rng: Rng, balance: NDArray[np.float64]) -> None:
    """A sun far away, its weak counterpart, and a sky between two colours."""
    low_sun = rng.random()
    sun = np.array([1.0, 0.97 - 0.13 * low_sun, 0.92 - 0.3 * low_sun])
    zenith = np.array([0.25, 0.42, 0.72]) * rng.uniform(0.6, 1.15) + rng.uniform(0.0, 0.12)
    horizon = np.array([0.78, 0.8, 0.82]) * (0.4 + 0.6 * sun)
    angle, up = rng.uniform(-np.pi, np.pi), rng.uniform(0.5, 1.2)
    for sign, power in ((1, rng.uniform(1.0, 1.45)), (-1, 0.25)):
        away = np.array([np.sin(angle) * np.cos(up), -np.sin(up), np.cos(angle) * np.cos(up)])
        away[::2] *= sign
        draft.light.append([float(c) for c in 200.0 * away])
        draft.light_colour.append([float(c) for c in sun * power * balance])
    draft.ambient = [float(c) for c in rng.uniform(0.42, 0.6) * (0.6 + 0.5 * zenith) * balance]
    draft.sky = [[float(c) for c in np.clip(v * balance, 0.02, 1)] for v in (horizon, zenith)]
