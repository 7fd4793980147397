"""Furniture made of boxes, spheres and cylinders.

A piece stands at (x, z), turned by `rotation`; its back is local -z.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from worker.scenes.materials import Material

if TYPE_CHECKING:
    from worker.scenes.draft import Draft

Rng = np.random.Generator
BOX, SPHERE, CYLINDER = 0, 1, 2


class Group:
    """Adds parts given in a piece's own frame: x right, z forward, `up` metres above the floor."""

    def __init__(self, draft: Draft, x: float, z: float, rotation: float) -> None:
        self.draft, self.x, self.z, self.rotation = draft, x, z, rotation
        self.cos, self.sin = float(np.cos(rotation)), float(np.sin(rotation))

    def part(
        self,
        kind: int,
        at: tuple[float, float, float],
        half: tuple[float, float, float],
        material: Material,
    ) -> None:
        """`at` = (x, up, z) of the part's centre; halves (x, y, z)."""
        x = self.x + self.cos * at[0] + self.sin * at[2]
        z = self.z - self.sin * at[0] + self.cos * at[2]
        self.draft.add(kind, (x, -at[1], z), half, self.rotation, material)


def table(draft: Draft, rng: Rng, x: float, z: float, rotation: float) -> None:
    g, wood = Group(draft, x, z, rotation), draft.palette.material("wood", rng)
    w, d, h = rng.uniform(0.5, 0.8), rng.uniform(0.35, 0.5), rng.uniform(0.55, 0.8)
    g.part(BOX, (0, h, 0), (w, 0.035, d), wood)
    for sx in (-1, 1):
        for sz in (-1, 1):
            g.part(
                BOX,
                (sx * (w - 0.07), h / 2, sz * (d - 0.07)),
                (0.04, h / 2, 0.04),
                wood,
            )
    on_top(g, rng, h + 0.035, w * 0.5, d * 0.5)


def on_top(g: Group, rng: Rng, up: float, dx: float, dz: float) -> None:
    """A bowl, a vase or a box upon a surface."""
    x, z = rng.uniform(-dx, dx), rng.uniform(-dz, dz)
    kind, r = int(rng.integers(0, 3)), rng.uniform(0.09, 0.17)
    half = (r, r * (1.5 if kind == CYLINDER else 1.0), r)
    material = g.draft.palette.material("box" if kind == BOX else "stone", rng)
    g.part(kind, (x, up + half[1], z), half, material)


def shelf(draft: Draft, rng: Rng, x: float, z: float, rotation: float) -> None:
    g, wood = Group(draft, x, z, rotation), draft.palette.material("wood", rng)
    w, d, h = rng.uniform(0.5, 0.9), 0.18, rng.uniform(1.5, 2.1)
    for sx in (-1, 1):
        g.part(BOX, (sx * w, h / 2, d), (0.03, h / 2, d), wood)
    num = 3
    for level in range(num + 1):
        g.part(BOX, (0, 0.06 + level * (h - 0.1) / num, d), (w, 0.03, d), wood)
    books = draft.palette.material("books", rng)
    for level in range(num):
        if rng.random() < 0.75:
            reach = w * rng.uniform(0.4, 0.9)
            hy = rng.uniform(0.1, 0.17)
            up = 0.09 + level * (h - 0.1) / num + hy
            g.part(BOX, (rng.uniform(-1, 1) * (w - reach), up, d * 0.9), (reach, hy, 0.13), books)


def sofa(draft: Draft, rng: Rng, x: float, z: float, rotation: float) -> None:
    g, cloth = Group(draft, x, z, rotation), draft.palette.material("fabric", rng)
    w = rng.uniform(0.6, 0.95)
    g.part(BOX, (0, 0.22, 0.45), (w, 0.2, 0.4), cloth)
    g.part(BOX, (0, 0.5, 0.13), (w, 0.3, 0.12), cloth)
    for sx in (-1, 1):
        g.part(BOX, (sx * (w + 0.1), 0.32, 0.45), (0.1, 0.3, 0.42), cloth)
    pillow = draft.palette.material("rug", rng)
    g.part(BOX, (rng.uniform(-0.5, 0.5) * w, 0.57, 0.33), (0.19, 0.15, 0.07), pillow)


def cabinet(draft: Draft, rng: Rng, x: float, z: float, rotation: float) -> None:
    g = Group(draft, x, z, rotation)
    material = draft.palette.material(str(rng.choice(["wood", "box", "accent"])), rng)
    w, h = rng.uniform(0.4, 0.85), rng.uniform(0.35, 1.0)
    g.part(BOX, (0, h, 0.28), (w, h, 0.26), material)
    if h < 0.7:
        on_top(g, rng, 2 * h, w * 0.6, 0.1)


def chair(draft: Draft, rng: Rng, x: float, z: float, rotation: float) -> None:
    g, cloth = Group(draft, x, z, rotation), draft.palette.material("fabric", rng)
    wood = draft.palette.material("wood", rng)
    g.part(BOX, (0, 0.45, 0), (0.23, 0.04, 0.23), cloth)
    g.part(BOX, (0, 0.75, -0.2), (0.23, 0.26, 0.03), cloth)
    g.part(CYLINDER, (0, 0.21, 0), (0.06, 0.21, 0.06), wood)
    g.part(CYLINDER, (0, 0.025, 0), (0.22, 0.025, 0.22), wood)


def plant(draft: Draft, rng: Rng, x: float, z: float, rotation: float) -> None:
    g = Group(draft, x, z, rotation)
    pot, leaf = draft.palette.material("stone", rng), draft.palette.material("leaf", rng)
    r, h = rng.uniform(0.14, 0.24), rng.uniform(0.15, 0.28)
    g.part(CYLINDER, (0, h, 0), (r, h, r), pot)
    for k in range(3):
        radius = rng.uniform(0.16, 0.27)
        at = (rng.uniform(-0.15, 0.15), 2 * h + 0.1 + 0.25 * k, rng.uniform(-0.15, 0.15))
        g.part(SPHERE, at, (radius,) * 3, leaf)


def lamp(draft: Draft, rng: Rng, x: float, z: float, rotation: float) -> None:
    g, metal = Group(draft, x, z, rotation), draft.palette.material("stone", rng)
    h = rng.uniform(1.2, 1.7)
    g.part(CYLINDER, (0, 0.02, 0), (0.18, 0.02, 0.18), metal)
    g.part(CYLINDER, (0, h / 2, 0), (0.035, h / 2, 0.035), metal)
    g.part(CYLINDER, (0, h, 0), (0.22, 0.16, 0.22), draft.palette.material("fabric", rng))


def pedestal(draft: Draft, rng: Rng, x: float, z: float, rotation: float) -> None:
    g = Group(draft, x, z, rotation)
    h, r = rng.uniform(0.35, 0.6), rng.uniform(0.2, 0.32)
    g.part(
        int(rng.choice([BOX, CYLINDER])), (0, h, 0), (r, h, r), draft.palette.material("stone", rng)
    )
    ball = rng.uniform(0.18, 0.3)
    g.part(SPHERE, (0, 2 * h + ball, 0), (ball,) * 3, draft.palette.material("accent", rng))


def crates(draft: Draft, rng: Rng, x: float, z: float, rotation: float) -> None:
    g = Group(draft, x, z, rotation)
    a, b = rng.uniform(0.22, 0.36), rng.uniform(0.15, 0.22)
    g.part(BOX, (0, a, 0), (a, a, a), draft.palette.material("box", rng))
    g.part(BOX, (0.05, 2 * a + b, 0.03), (b, b, b), draft.palette.material("wood", rng))


@dataclass(frozen=True)
class Piece:
    build: Callable[[Draft, Rng, float, float, float], None]
    radius: float  # of the free spot it needs
    by_wall: bool
    weight: float


PIECES = (
    Piece(table, 0.8, False, 2),
    Piece(shelf, 0.85, True, 2.5),
    Piece(sofa, 1.0, True, 2),
    Piece(cabinet, 0.8, True, 2.5),
    Piece(chair, 0.35, False, 2),
    Piece(plant, 0.4, False, 1.5),
    Piece(lamp, 0.3, False, 1),
    Piece(pedestal, 0.45, False, 1.5),
    Piece(crates, 0.5, False, 1.5),
)
WEIGHTS = np.array([piece.weight for piece in PIECES]) / sum(piece.weight for piece in PIECES)


def hang_pictures(draft: Draft, rng: Rng, face: int) -> None:
    """Up to two thin boxes on a wall (face 0, 1 = x low, high; 4, 5 = z low, high)."""
    across, along = (0, 2) if face < 2 else (2, 0)
    wall = float((draft.room_high if face % 2 else draft.room_low)[across])
    reach = float(draft.room_high[along])
    for start in (-0.5, 0.5):
        if rng.random() < 0.35:
            continue
        at = reach * (start + rng.uniform(-0.15, 0.15))
        w, h = rng.uniform(0.3, 0.75), rng.uniform(0.28, 0.5)
        role = str(rng.choice(["picture", "canvas", "poster"]))
        material = draft.palette.material(role, rng).stretched_over(2 * w, 2 * h)
        centre, half = [0.0, -rng.uniform(1.5, 1.8), 0.0], [0.03, h, 0.03]
        centre[across], centre[along], half[along] = wall, at, w
        draft.add(
            BOX, (centre[0], centre[1], centre[2]), (half[0], half[1], half[2]), 0.0, material
        )


def clutter(draft: Draft, rng: Rng, num: int) -> None:
    """Small things left lying on the floor."""
    for _ in range(num):
        x, z = rng.uniform(-1, 1, 2) * (draft.room_high[[0, 2]] - 0.4)
        r = rng.uniform(0.07, 0.2)
        if draft.is_free(x, z, r):
            kind = int(rng.integers(0, 3))
            half = (r, r * (rng.uniform(0.3, 1.6) if kind != SPHERE else 1.0), r)
            role = str(rng.choice(["box", "accent", "fabric", "metal", "wood"]))
            turn = float(rng.uniform(-np.pi, np.pi))
            material = draft.palette.material(role, rng)
            draft.add(kind, (float(x), -half[1], float(z)), half, turn, material)
            draft.taken.append((float(x), float(z), r + 0.1))
