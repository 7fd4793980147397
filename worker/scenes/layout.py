"""Rooms: which one, which walls inside it, which furniture where.

Furniture keeps to free spots found by rejection; what does not fit is left out.
"""

from __future__ import annotations

import numpy as np

from worker.scenes import furniture
from worker.scenes.draft import MAX_PRIMITIVES, Draft, Rng, new_draft


def room(rng: Rng) -> Draft:
    kind = rng.choice(["room", "divided", "corner", "ring"], p=[0.45, 0.25, 0.15, 0.15])
    width, depth = rng.uniform(5, 9, 2) if kind == "room" else rng.uniform(7, 10, 2)
    draft = new_draft(rng, width, rng.uniform(2.6, 3.6), depth)
    paint_room(draft, rng)
    {"room": add_pillars, "divided": add_partition, "corner": add_block, "ring": add_core}[
        str(kind)
    ](draft, rng)
    furnish(draft, rng)
    furniture.clutter(draft, rng, int(rng.integers(0, 5)))
    return draft


def paint_room(draft: Draft, rng: Rng) -> None:
    accent = int(rng.integers(0, 6))
    wall = draft.palette.material("wall", rng)
    for face, name in enumerate(["wall", "wall", "ceiling", "floor", "wall", "wall"]):
        if name == "wall":
            draft.paint(draft.palette.material("accent", rng) if face == accent else wall)
        else:
            draft.paint(draft.palette.material(name, rng))


def add_pillars(draft: Draft, rng: Rng) -> None:
    h = draft.height / 2
    for _ in range(int(rng.choice([0, 0, 1, 2]))):
        x, z = (
            rng.uniform(-1, 1) * draft.room_high[0] / 2,
            rng.uniform(-1, 1) * draft.room_high[2] / 2,
        )
        r = rng.uniform(0.15, 0.3)
        if draft.is_free(x, z, 1.0):
            draft.add(
                int(rng.choice([0, 2])),
                (x, -h, z),
                (r, h, r),
                0.0,
                draft.palette.material("stone", rng),
            )
            draft.taken.append((x, z, r + 0.3))


def add_partition(draft: Draft, rng: Rng) -> None:
    """A wall across the longer side with a doorway: two connected rooms."""
    along_x = draft.room_high[0] < draft.room_high[2]  # the wall runs along x
    across, reach = (0, 2) if along_x else (2, 0)
    at = rng.uniform(-0.2, 0.2) * draft.room_high[reach]
    gap = rng.uniform(1.3, 2.2)
    side = float(draft.room_high[across])
    door = rng.uniform(-0.6, 0.6) * (side - gap)
    top = min(draft.height - 0.1, rng.uniform(2.1, 2.5))
    material, thick = draft.palette.material("accent", rng), rng.uniform(0.07, 0.14)
    pieces = [
        (-side, door - gap / 2, draft.height, 0.0),
        (door + gap / 2, side, draft.height, 0.0),
        (door - gap / 2, door + gap / 2, draft.height, top),
    ]
    for start, end, high, low in pieces:
        centre, half = (start + end) / 2, (end - start) / 2
        y, hy = -(high + low) / 2, (high - low) / 2
        if along_x:
            draft.add(0, (centre, y, at), (half, hy, thick), 0.0, material)
        else:
            draft.add(0, (at, y, centre), (thick, hy, half), 0.0, material)
    for step in np.arange(-side, side, 0.4):
        draft.taken.append((step, at, 0.3) if along_x else (at, step, 0.3))
    draft.taken.append((door, at, 1.0) if along_x else (at, door, 1.0))


def _block(draft: Draft, rng: Rng, x: float, z: float, hx: float, hz: float) -> None:
    h = draft.height / 2
    draft.add(0, (x, -h, z), (hx, h, hz), 0.0, draft.palette.material("accent", rng))
    for step_x in np.arange(-hx, hx + 0.01, 0.4):
        for step_z in np.arange(-hz, hz + 0.01, 0.4):
            draft.taken.append((x + step_x, z + step_z, 0.35))


def add_block(draft: Draft, rng: Rng) -> None:
    """Fill one corner: an L-shaped room."""
    hx, hz = rng.uniform(0.2, 0.29, 2) * (draft.room_high - draft.room_low)[[0, 2]]
    x = rng.choice([-1, 1]) * (draft.room_high[0] - hx)
    z = rng.choice([-1, 1]) * (draft.room_high[2] - hz)
    _block(draft, rng, x, z, hx, hz)


def add_core(draft: Draft, rng: Rng) -> None:
    """A block in the middle: corridors all around it."""
    hx, hz = rng.uniform(0.12, 0.2, 2) * (draft.room_high - draft.room_low)[[0, 2]]
    x, z = rng.uniform(-0.5, 0.5, 2)
    _block(draft, rng, x, z, hx, hz)


def furnish(draft: Draft, rng: Rng, fullness: float = 1.0) -> None:
    _rugs(draft, rng)
    area = float(draft.room_high[0] * draft.room_high[2]) * 4
    wanted = int(fullness * (rng.integers(5, 8) + area / 12))
    for _ in range(wanted * 4):
        if wanted == 0 or len(draft.kind) > MAX_PRIMITIVES - 18:
            break
        piece = furniture.PIECES[int(rng.choice(len(furniture.PIECES), p=furniture.WEIGHTS))]
        radius = piece.radius
        x, z, rotation = _spot(draft, rng, piece.by_wall, radius)
        if draft.is_free(x, z, radius):
            piece.build(draft, rng, x, z, rotation)
            draft.taken.append((x, z, radius + 0.15))
            wanted -= 1
    for face in (0, 1, 4, 5):
        furniture.hang_pictures(draft, rng, face)


def _rugs(draft: Draft, rng: Rng) -> None:
    for _ in range(int(rng.integers(0, 3))):
        half = rng.uniform(0.7, 1.4, 2)
        x, z = rng.uniform(-1, 1, 2) * (draft.room_high[[0, 2]] - 1.6)
        material = draft.palette.material("rug", rng)
        draft.add(
            0,
            (x, -0.008, z),
            (half[0], 0.008, half[1]),
            rng.choice([0.0, rng.uniform(-0.5, 0.5)]),
            material,
        )


def _spot(draft: Draft, rng: Rng, by_wall: bool, radius: float) -> tuple[float, float, float]:
    """x, z and rotation of a try; a piece by the wall has its back (local -z) to it."""
    if not by_wall:
        x, z = rng.uniform(-1, 1, 2) * (draft.room_high[[0, 2]] - radius - 0.4)
        return float(x), float(z), float(rng.uniform(-np.pi, np.pi))
    side = int(rng.integers(0, 4))
    rotation = side * np.pi / 2
    back = np.array([-np.sin(rotation), -np.cos(rotation)])  # local -z in the world's x, z
    along = np.array([back[1], -back[0]])
    extent = draft.room_high[[0, 2]]
    reach = float(np.abs(back) @ extent) - 0.02
    slide = rng.uniform(-1, 1) * (float(np.abs(along) @ extent) - radius)
    spot = back * reach + along * slide
    return float(spot[0]), float(spot[1]), float(rotation)
