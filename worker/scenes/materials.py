"""Natural palettes: a scene's textures, and materials (texture, scale, shift, tint) from them.

A role's texture is baked when the scene first uses it, from a generator of its own, so that a
world's look does not depend on the order in which things were built; roles that a world has not
got cost nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from worker.scenes import textures
from worker.scenes.families import bake
from worker.scenes.textures import NUM_TEXELS, Image, hsv

Rng = np.random.Generator
Vector = NDArray[np.float32]

ROLES: dict[str, tuple[str, ...]] = {  # role -> texture families it may have
    "floor": ("planks", "wood", "tiles", "tiles", "terrazzo", "marble", "concrete", "flagstones"),
    "wall": ("plaster", "plaster", "stripes", "bricks", "clouds", "damask", "concrete", "rubble"),
    "ceiling": ("plaster", "planks", "clouds", "concrete"),
    "accent": ("bricks", "stripes", "marble", "plaster", "tiles", "wood", "rubble", "damask"),
    "wood": ("planks", "wood", "wood"),
    "fabric": ("fabric", "stripes", "knit", "tartan"),
    "rug": ("diamonds", "carpet", "carpet", "tartan", "knit"),
    "stone": ("marble", "terrazzo", "clouds", "concrete"),
    "box": ("marks", "tiles", "diamonds", "wood", "metal", "page"),
    "books": ("books",),
    "picture": ("painting", "landscape", "landscape"),
    "canvas": ("still_life", "landscape", "painting"),
    "poster": ("page", "page", "marks"),
    "leaf": ("foliage", "foliage", "clouds"),
    "door": ("door",),
    "window": ("window",),
    "ground": ("cobble", "gravel", "grass", "grass", "flagstones", "tiles"),
    "facade": ("bricks", "rubble", "plaster", "concrete", "wood"),
    "metal": ("metal",),
    "sky": ("sky",),
}
PERIODS_M = {
    "wood": 1.4,
    "fabric": 1.3,
    "stone": 1.8,
    "box": 1.3,
    "books": 1.6,
    "rug": 2.0,
    "leaf": 1.0,
    "metal": 1.6,
}
PLAIN_ROLES = ("wall", "floor", "ceiling", "ground", "facade", "sky")  # as painted, without tint


@dataclass(frozen=True)
class Material:
    texture: int
    period: tuple[float, float]  # metres
    phase: tuple[float, float]  # periods
    tint: Vector  # (3,)

    def stretched_over(self, width: float, height: float) -> Material:
        """The texture exactly once over a face of this size (pictures)."""
        return Material(self.texture, (width, height), (0.5, 0.5), self.tint)


class Palette:
    """Colours around two hues that go together; `atlas[i]` is the texture of the i-th role."""

    def __init__(self, rng: Rng) -> None:
        hue = _natural_hue(rng)
        accent = _natural_hue(rng) if rng.random() < 0.6 else hue + rng.choice([0.06, -0.06])
        self._wood = hsv(rng.uniform(0.05, 0.1), rng.uniform(0.3, 0.6), rng.uniform(0.35, 0.8))
        stone = hsv(rng.uniform(0.05, 0.6), rng.uniform(0.03, 0.15), rng.uniform(0.5, 0.85))
        self._wall = hsv(hue, rng.uniform(0.05, 0.24), rng.uniform(0.66, 0.9))
        self._strong = hsv(accent, rng.uniform(0.2, 0.42), rng.uniform(0.5, 0.8))
        self._brick = hsv(rng.uniform(0, 0.07), rng.uniform(0.3, 0.5), rng.uniform(0.5, 0.75))
        self._green = hsv(rng.uniform(0.2, 0.34), rng.uniform(0.35, 0.6), rng.uniform(0.38, 0.6))
        self._base = {
            "wood": self._wood,
            "door": self._wood if rng.random() < 0.6 else self._strong,
            "floor": stone,
            "wall": self._wall,
            "ceiling": hsv(hue, 0.05, 0.92),
            "stone": stone,
            "picture": self._wood,
            "canvas": self._wood,
            "leaf": self._green,
            "ground": stone,
            "facade": self._wall,
            "metal": stone,
        }
        self._seed = int(rng.integers(1 << 31))
        self.atlas: list[NDArray[np.int32]] = [np.zeros(NUM_TEXELS, np.int32)] * len(ROLES)
        self._baked: set[str] = set()

    def material(self, role: str, rng: Rng) -> Material:
        index = list(ROLES).index(role)
        if role not in self._baked:
            self._baked.add(role)
            self.atlas[index] = self._bake(role, np.random.default_rng([self._seed, index]))
        shade = rng.uniform(0.82, 1.12) * (1 + rng.uniform(-0.07, 0.07, 3))
        if role in PLAIN_ROLES:
            shade = np.ones(3)
        period = PERIODS_M.get(role, 2.8) * rng.uniform(0.85, 1.2)
        phase = rng.random(2)
        return Material(
            index,
            (period, period),
            (float(phase[0]), float(phase[1])),
            shade.astype(np.float32),
        )

    def _bake(self, role: str, rng: Rng) -> NDArray[np.int32]:
        family = str(rng.choice(ROLES[role]))
        base: Image = self._base.get(role, self._strong)
        if family in ("planks", "wood") and role != "ceiling":
            base = textures.vary(rng, self._wood, 0.15)
        elif family == "bricks":
            base = self._brick if rng.random() < 0.6 else self._wall
        elif family == "grass":
            base = self._green
        return bake(family, rng, np.asarray(textures.vary(rng, base, 0.05)))


def _natural_hue(rng: Rng) -> float:
    """Earth, greens and blues mostly; pinks and purples rarely."""
    low, high = ((0.02, 0.17), (0.22, 0.45), (0.5, 0.66), (0.0, 1.0))[
        int(rng.choice(4, p=[0.42, 0.22, 0.28, 0.08]))
    ]
    return float(rng.uniform(low, high))
