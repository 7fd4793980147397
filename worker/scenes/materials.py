"""Natural palettes: a scene's textures, and materials (texture, scale, shift, tint) from them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from worker.scenes import textures
from worker.scenes.textures import hsv

Rng = np.random.Generator
Vector = NDArray[np.float32]

ROLES: dict[str, tuple[str, ...]] = {  # role -> texture families it may have
    "floor": ("planks", "planks", "tiles", "tiles", "terrazzo", "marble", "diamonds"),
    "wall": ("plaster", "plaster", "stripes", "bricks", "clouds", "diamonds"),
    "ceiling": ("plaster", "planks", "clouds"),
    "accent": ("bricks", "stripes", "marble", "plaster", "tiles", "planks"),
    "wood": ("planks",),
    "fabric": ("fabric", "stripes", "clouds"),
    "rug": ("diamonds", "fabric", "stripes", "tiles"),
    "stone": ("marble", "terrazzo", "clouds"),
    "box": ("marks", "tiles", "diamonds", "planks"),
    "books": ("books",),
    "picture": ("painting",),
    "poster": ("painting", "marks"),
    "leaf": ("clouds", "terrazzo"),
}
PERIODS_M = {"wood": 1.6, "fabric": 1.6, "stone": 1.8, "box": 1.3, "books": 1.6, "rug": 2.0}


@dataclass(frozen=True)
class Material:
    texture: int
    period: tuple[float, float]  # metres
    phase: tuple[float, float]  # periods
    tint: Vector  # (3,)

    def stretched_over(self, width: float, height: float) -> Material:
        """The texture exactly once over a face of this size (pictures)."""
        return Material(self.texture, (width, height), (0.5, 0.5), self.tint)


@dataclass(frozen=True)
class Palette:
    atlas: list[NDArray[np.int32]]

    def material(self, role: str, rng: Rng) -> Material:
        shade = rng.uniform(0.82, 1.12) * (1 + rng.uniform(-0.07, 0.07, 3))
        if role in ("wall", "floor", "ceiling"):
            shade = np.ones(3)
        period = PERIODS_M.get(role, 2.8) * rng.uniform(0.85, 1.2)
        phase = rng.random(2)
        return Material(
            list(ROLES).index(role),
            (period, period),
            (float(phase[0]), float(phase[1])),
            shade.astype(np.float32),
        )


def sample_palette(rng: Rng) -> Palette:
    """One texture per role, colours around two hues that go together."""
    hue = _natural_hue(rng)
    accent = _natural_hue(rng) if rng.random() < 0.6 else hue + rng.choice([0.06, -0.06])
    wood = hsv(rng.uniform(0.05, 0.1), rng.uniform(0.35, 0.6), rng.uniform(0.45, 0.8))
    stone = hsv(rng.uniform(0.05, 0.6), rng.uniform(0.03, 0.15), rng.uniform(0.6, 0.85))
    wall = hsv(hue, rng.uniform(0.05, 0.24), rng.uniform(0.74, 0.9))
    strong = hsv(accent, rng.uniform(0.2, 0.42), rng.uniform(0.55, 0.8))
    brick = hsv(rng.uniform(0.0, 0.07), rng.uniform(0.3, 0.5), rng.uniform(0.55, 0.75))
    atlas = []
    for role, families in ROLES.items():
        family = str(rng.choice(families))
        base = {
            "wood": wood,
            "floor": stone,
            "wall": wall,
            "ceiling": hsv(hue, 0.05, 0.92),
            "stone": stone,
            "picture": wood,
            "leaf": hsv(rng.uniform(0.22, 0.36), rng.uniform(0.4, 0.6), rng.uniform(0.4, 0.6)),
        }.get(role, strong)
        if family == "planks" and role != "ceiling":
            base = textures.vary(rng, wood, 0.15)
        elif family == "bricks":
            base = brick if rng.random() < 0.6 else wall
        atlas.append(textures.bake(family, rng, np.asarray(textures.vary(rng, base, 0.05))))
    return Palette(atlas)


def _natural_hue(rng: Rng) -> float:
    """Earth, greens and blues mostly; pinks and purples rarely."""
    low, high = ((0.02, 0.17), (0.22, 0.45), (0.5, 0.66), (0.0, 1.0))[
        int(rng.choice(4, p=[0.4, 0.22, 0.26, 0.12]))
    ]
    return float(rng.uniform(low, high))
