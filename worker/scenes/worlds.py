"""Worlds other than rooms: corridors, courtyards under the sky, stairs, halls, stacks of shelves.

Each builder returns a draft without lamps. `WORLDS` maps a name to its builder and its share.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

import numpy as np

from worker.scenes import furniture
from worker.scenes.draft import Draft, Rng, light_up, new_draft
from worker.scenes.furniture import BOX, CYLINDER, SPHERE, Group
from worker.scenes.layout import furnish, paint_room, room


def corridor(rng: Rng) -> Draft:
    """Blocks on both sides leave a passage and niches; doors, pictures and lamps line it."""
    draft = new_draft(rng, rng.uniform(5.5, 7.5), rng.uniform(2.5, 3.2), rng.uniform(9, 13))
    paint_room(draft, rng)
    passage, length = rng.uniform(0.95, 1.5), float(draft.room_high[2])
    outer = float(draft.room_high[0])
    for side in (-1.0, 1.0):
        for start, end in _segments(rng, -length, length):
            _lining(draft, rng, side, passage, outer, (start, end))
    for z in np.arange(-length + 1.5, length - 1, 3.0):
        lamp = draft.palette.material("ceiling", rng)
        draft.add(BOX, (0.0, -draft.height + 0.03, float(z)), (0.16, 0.03, 0.5), 0.0, lamp)
    if rng.random() < 0.5:
        rug = draft.palette.material("rug", rng)
        draft.add(BOX, (0.0, -0.008, 0.0), (passage * 0.5, 0.008, length * 0.7), 0.0, rug)
    for face in (4, 5):
        furniture.hang_pictures(draft, rng, face)
    furniture.clutter(draft, rng, int(rng.integers(2, 8)))
    return draft


def _segments(rng: Rng, low: float, high: float) -> list[tuple[float, float]]:
    """Two or three stretches of wall with openings between them."""
    num = int(rng.integers(2, 4))
    cuts = np.linspace(low, high, num + 1)
    cuts[1:-1] += rng.uniform(-0.8, 0.8, num - 1)
    gap = rng.uniform(1.0, 1.8)
    pairs = itertools.pairwise(cuts)
    return [
        (float(a) + (gap / 2 if k else 0), float(b) - (gap / 2 if k < num - 1 else 0))
        for k, (a, b) in enumerate(pairs)
    ]


def _lining(
    draft: Draft, rng: Rng, side: float, near: float, far: float, span: tuple[float, float]
) -> None:
    """One block along the passage with a door or pictures on it."""
    middle, half = (span[0] + span[1]) / 2, (span[1] - span[0]) / 2
    deep, h = (far - near) / 2, draft.height / 2
    role = "wall" if rng.random() < 0.6 else "accent"
    x = side * (near + far) / 2
    draft.add(BOX, (x, -h, middle), (deep, h, half), 0.0, draft.palette.material(role, rng))
    for step in np.arange(span[0], span[1], 0.5):
        draft.taken.append((side * (near + 0.35), float(step), 0.35))
    surface = side * near
    num = max(1, int(half / 1.3))
    for k in range(num):
        at = middle + (2 * (k + 0.5) / num - 1) * half
        if rng.random() < 0.65:
            _door(draft, rng, surface, at)
        else:
            w, tall = rng.uniform(0.3, 0.55), rng.uniform(0.28, 0.45)
            role = str(rng.choice(["picture", "canvas", "poster"]))
            material = draft.palette.material(role, rng).stretched_over(2 * w, 2 * tall)
            draft.add(BOX, (surface, -rng.uniform(1.5, 1.7), at), (0.03, tall, w), 0.0, material)


def _door(draft: Draft, rng: Rng, x: float, z: float) -> None:
    w, h = rng.uniform(0.4, 0.5), rng.uniform(1.0, 1.08)
    frame = draft.palette.material("wood", rng)
    draft.add(BOX, (x, -h - 0.04, z), (0.035, h + 0.04, w + 0.08), 0.0, frame)
    leaf = draft.palette.material("door", rng).stretched_over(2 * w, 2 * h)
    draft.add(BOX, (x, -h, z), (0.05, h, w), 0.0, leaf)


def court(rng: Rng) -> Draft:
    """Walls with windows and a door under the sky; trees, planters, benches, an arcade, a well."""
    width, depth = rng.uniform(9, 14, 2)
    draft = new_draft(rng, width, rng.uniform(2.2, 4.8), depth, is_open=True)
    wall, ground = draft.palette.material("facade", rng), draft.palette.material("ground", rng)
    odd = int(rng.integers(0, 6))
    for face in range(6):
        if face == 3:
            draft.paint(ground)
        elif face == 2:
            draft.paint(draft.palette.material("sky", rng))
        else:
            draft.paint(draft.palette.material("accent", rng) if face == odd else wall)
    if rng.random() < 0.5:
        _arcade(draft, rng)
    if rng.random() < 0.45:
        _hut(draft, rng)
    for face in (0, 1, 4, 5):
        _windows(draft, rng, face)
    _scatter(draft, rng, OUTDOOR, int(rng.integers(5, 10)))
    furniture.clutter(draft, rng, int(rng.integers(0, 5)))
    return draft


def _arcade(draft: Draft, rng: Rng) -> None:
    """Pillars in a row before one wall, a beam on top."""
    side, reach = float(rng.choice([-1, 1])), float(draft.room_high[2])
    x = side * (float(draft.room_high[0]) - rng.uniform(1.4, 2.2))
    top = min(draft.height - 0.2, rng.uniform(2.3, 3.2))
    stone = draft.palette.material("stone", rng)
    kind, r = int(rng.choice([BOX, CYLINDER])), rng.uniform(0.14, 0.25)
    draft.add(BOX, (x, -top - 0.18, 0.0), (0.25, 0.18, reach), 0.0, stone)
    for z in np.linspace(-reach + 0.8, reach - 0.8, int(rng.integers(4, 7))):
        draft.add(kind, (x, -top / 2, float(z)), (r, top / 2, r), 0.0, stone)
        draft.taken.append((x, float(z), r + 0.2))


def _hut(draft: Draft, rng: Rng) -> None:
    """A small house in a corner, as high as the walls or lower."""
    hx, hz = rng.uniform(1.0, 1.7, 2)
    h = min(draft.height, rng.uniform(2.4, 4.0)) / 2
    sx, sz = rng.choice([-1.0, 1.0], 2)
    x, z = sx * (draft.room_high[0] - hx), sz * (draft.room_high[2] - hz)
    draft.add(
        BOX, (float(x), -h, float(z)), (hx, h, hz), 0.0, draft.palette.material("accent", rng)
    )
    if 2 * h < draft.height - 0.2:
        roof = draft.palette.material("wood", rng)
        draft.add(BOX, (float(x), -2 * h - 0.06, float(z)), (hx + 0.2, 0.06, hz + 0.2), 0.0, roof)
    _door(draft, rng, float(x - sx * hx), float(z))
    draft.taken.append((float(x), float(z), float(np.hypot(hx, hz)) + 0.2))


def _windows(draft: Draft, rng: Rng, face: int) -> None:
    """Windows in a row and sometimes a door, on one of the walls."""
    across, along = (0, 2) if face < 2 else (2, 0)
    wall = float((draft.room_high if face % 2 else draft.room_low)[across])
    reach, num = float(draft.room_high[along]), int(rng.integers(0, 4))
    w, h = rng.uniform(0.4, 0.8), rng.uniform(0.4, 0.7)
    pane = draft.palette.material("window", rng).stretched_over(2 * w, 2 * h)
    for k in range(num):
        centre, half = [0.0, -1.5, 0.0], [0.06, h, 0.06]
        centre[across], centre[along], half[along] = wall, (2 * (k + 0.5) / num - 1) * reach, w
        if k == num // 2 and rng.random() < 0.4:
            leaf = draft.palette.material("door", rng).stretched_over(1.0, 2.1)
            half[1], half[along], centre[1] = 1.05, 0.5, -1.05
            draft.add(BOX, (centre[0], centre[1], centre[2]), (half[0], half[1], half[2]), 0, leaf)
        else:
            draft.add(BOX, (centre[0], centre[1], centre[2]), (half[0], half[1], half[2]), 0, pane)


def tree(draft: Draft, rng: Rng, x: float, z: float, rotation: float) -> None:
    g = Group(draft, x, z, rotation)
    h, leaf = rng.uniform(1.3, 2.2), draft.palette.material("leaf", rng)
    g.part(CYLINDER, (0, h / 2, 0), (0.11, h / 2, 0.11), draft.palette.material("wood", rng))
    for k in range(int(rng.integers(2, 5))):
        r = rng.uniform(0.4, 0.75)
        at = (rng.uniform(-0.4, 0.4), h + 0.3 + 0.3 * k * rng.random(), rng.uniform(-0.4, 0.4))
        g.part(SPHERE, at, (r, r, r), leaf)


def planter(draft: Draft, rng: Rng, x: float, z: float, rotation: float) -> None:
    g = Group(draft, x, z, rotation)
    w, h = rng.uniform(0.3, 0.7), rng.uniform(0.2, 0.35)
    g.part(BOX, (0, h, 0), (w, h, 0.3), draft.palette.material("stone", rng))
    leaf = draft.palette.material("leaf", rng)
    for sx in np.linspace(-w + 0.2, w - 0.2, 2 if w < 0.5 else 3):
        r = rng.uniform(0.2, 0.3)
        g.part(SPHERE, (float(sx), 2 * h + 0.6 * r, 0), (r, r, r), leaf)


def bench(draft: Draft, rng: Rng, x: float, z: float, rotation: float) -> None:
    g, wood = Group(draft, x, z, rotation), draft.palette.material("wood", rng)
    w, metal = rng.uniform(0.6, 0.9), draft.palette.material("metal", rng)
    g.part(BOX, (0, 0.44, 0), (w, 0.03, 0.22), wood)
    g.part(BOX, (0, 0.75, -0.22), (w, 0.14, 0.03), wood)
    for sx in (-1, 1):
        g.part(BOX, (sx * (w - 0.1), 0.3, -0.04), (0.03, 0.3, 0.2), metal)


def well(draft: Draft, rng: Rng, x: float, z: float, rotation: float) -> None:
    g, stone = Group(draft, x, z, rotation), draft.palette.material("stone", rng)
    r = rng.uniform(0.5, 0.9)
    g.part(CYLINDER, (0, 0.3, 0), (r, 0.3, r), stone)
    g.part(CYLINDER, (0, 0.75, 0), (0.12, 0.45, 0.12), stone)
    g.part(CYLINDER, (0, 1.15, 0), (r * 0.45, 0.06, r * 0.45), stone)


def low_wall(draft: Draft, rng: Rng, x: float, z: float, rotation: float) -> None:
    w, h = rng.uniform(0.6, 1.1), rng.uniform(0.3, 0.55)
    g = Group(draft, x, z, rotation)
    g.part(BOX, (0, h, 0), (w, h, 0.14), draft.palette.material("facade", rng))
    g.part(BOX, (0, 2 * h + 0.04, 0), (w + 0.04, 0.04, 0.18), draft.palette.material("stone", rng))


def rack(draft: Draft, rng: Rng, x: float, z: float, rotation: float) -> None:
    """Open shelving with boxes and books on it, seen from both sides."""
    g, metal = Group(draft, x, z, rotation), draft.palette.material("metal", rng)
    w, h, num = rng.uniform(0.8, 1.0), rng.uniform(1.6, 2.2), int(rng.integers(2, 4))
    for sx in (-1, 1):
        g.part(BOX, (sx * w, h / 2, 0), (0.03, h / 2, 0.2), metal)
    for level in range(num + 1):
        g.part(BOX, (0, 0.08 + level * (h - 0.12) / num, 0), (w, 0.025, 0.2), metal)
    for level in range(num):
        hx, hy = w * rng.uniform(0.25, 0.8), rng.uniform(0.1, 0.22)
        up = 0.105 + level * (h - 0.12) / num + hy
        material = draft.palette.material(str(rng.choice(["box", "books", "fabric"])), rng)
        g.part(BOX, (rng.uniform(-1, 1) * (w - hx), up, 0), (hx, hy, 0.17), material)


Build = Callable[[Draft, Rng, float, float, float], None]
OUTDOOR: tuple[tuple[Build, float], ...] = (
    (tree, 0.9),
    (tree, 0.9),
    (planter, 0.7),
    (bench, 0.8),
    (well, 0.9),
    (low_wall, 0.9),
    (furniture.crates, 0.5),
    (furniture.pedestal, 0.45),
)
STORED: tuple[tuple[Build, float], ...] = (
    (furniture.crates, 0.5),
    (furniture.cabinet, 0.8),
    (furniture.table, 0.8),
    (furniture.chair, 0.35),
    (furniture.plant, 0.4),
)


def _scatter(draft: Draft, rng: Rng, pieces: tuple[tuple[Build, float], ...], num: int) -> None:
    for _ in range(num * 4):
        if num == 0 or len(draft.kind) > 48:
            return
        build, radius = pieces[int(rng.integers(len(pieces)))]
        x, z = (float(v) for v in rng.uniform(-1, 1, 2) * (draft.room_high[[0, 2]] - radius - 0.1))
        if draft.is_free(x, z, radius):
            build(draft, rng, x, z, float(rng.uniform(-np.pi, np.pi)))
            draft.taken.append((x, z, radius + 0.15))
            num -= 1


def stairs(rng: Rng) -> Draft:
    """A platform along one wall with steps up to it, a rail on its edge."""
    width, depth = rng.uniform(7, 10, 2)
    draft = new_draft(rng, width, rng.uniform(3.3, 4.6), depth)
    paint_room(draft, rng)
    side, num = float(rng.choice([-1, 1])), int(rng.integers(3, 8))
    rise = rng.uniform(0.13, 0.2)
    deep, reach = rng.uniform(0.9, 1.5), float(draft.room_high[2])
    edge = float(draft.room_high[0]) - 2 * deep
    body, wood = draft.palette.material("accent", rng), draft.palette.material("wood", rng)
    h = num * rise
    draft.add(BOX, (side * (edge + deep), -h / 2, 0.0), (deep, h / 2, reach), 0.0, body)
    half, tread = rng.uniform(0.6, 1.0), rng.uniform(0.26, 0.34)
    at = rng.uniform(-1, 1) * (reach - half - 0.3)
    for k in range(num - 1):
        up, out = (num - 1 - k) * rise, edge - (k + 0.5) * tread
        draft.add(BOX, (side * out, -up / 2, at), (tread / 2, up / 2, half), 0.0, body)
        draft.taken.append((side * out, at, half))
    for start, end in ((-reach, at - half), (at + half, reach)):
        if end - start > 0.4 and rng.random() < 0.8:
            centre, long = (start + end) / 2, (end - start) / 2
            draft.add(BOX, (side * edge, -h - 0.85, centre), (0.04, 0.04, long), 0.0, wood)
            for z in np.linspace(start + 0.1, end - 0.1, 4):
                draft.add(BOX, (side * edge, -h - 0.42, float(z)), (0.03, 0.42, 0.03), 0.0, wood)
    for z in np.arange(-reach, reach, 0.6):
        draft.taken.append((side * (edge + deep), float(z), deep))
    furnish(draft, rng, 0.6)
    furniture.clutter(draft, rng, int(rng.integers(0, 4)))
    return draft


def hall(rng: Rng) -> Draft:
    """A gallery: pillars in two rows, pictures on every wall, benches and pedestals."""
    width, depth = rng.uniform(7, 11, 2)
    draft = new_draft(rng, width, rng.uniform(3.2, 4.8), depth)
    paint_room(draft, rng)
    kind, r = int(rng.choice([BOX, CYLINDER])), rng.uniform(0.14, 0.28)
    stone, h = draft.palette.material("stone", rng), draft.height / 2
    for x in (-0.45, 0.45):
        for z in np.linspace(-0.6, 0.6, int(rng.integers(2, 4))):
            px, pz = x * float(draft.room_high[0]), float(z * draft.room_high[2])
            draft.add(kind, (px, -h, pz), (r, h, r), 0.0, stone)
            draft.add(BOX, (px, -0.1, pz), (r + 0.08, 0.1, r + 0.08), 0.0, stone)
            draft.taken.append((px, pz, r + 0.3))
    pieces = ((furniture.pedestal, 0.45), (bench, 0.8), (furniture.plant, 0.4))
    _scatter(draft, rng, pieces, int(rng.integers(4, 9)))
    for face in (0, 1, 4, 5):
        furniture.hang_pictures(draft, rng, face)
    return draft


def stacks(rng: Rng) -> Draft:
    """Rows of open shelving with aisles between them, as in a library or a store room."""
    width, depth = rng.uniform(6, 9), rng.uniform(6, 10)
    draft = new_draft(rng, width, rng.uniform(2.6, 3.6), depth)
    paint_room(draft, rng)
    x0 = rng.uniform(-1, -0.2)
    for row in range(2):
        for z in np.arange(-depth / 2 + 1.6, depth / 2 - 1.2, 2.1)[:2]:
            x = float(x0 + row * rng.uniform(1.6, 2.2))
            rack(draft, rng, x, float(z), np.pi / 2)
            for step in (-0.8, 0.0, 0.8):
                draft.taken.append((x, float(z) + step, 0.5))
    _scatter(draft, rng, STORED, int(rng.integers(3, 7)))
    for face in (0, 1, 4, 5):
        furniture.hang_pictures(draft, rng, face)
    furniture.clutter(draft, rng, int(rng.integers(1, 6)))
    return draft


WORLDS: dict[str, tuple[Callable[[Rng], Draft], float]] = {
    "room": (room, 0.4),
    "corridor": (corridor, 0.13),
    "court": (court, 0.17),
    "stairs": (stairs, 0.11),
    "hall": (hall, 0.1),
    "stacks": (stacks, 0.09),
}
SHARES: Mapping[str, float] = {name: share for name, (_, share) in WORLDS.items()}


def draft_scene(rng: Rng, shares: Mapping[str, float] = SHARES) -> Draft:
    """A lit world of one of the kinds in `shares`, drawn in proportion to its share."""
    unknown = set(shares) - set(WORLDS)
    if unknown or not shares or min(shares.values()) < 0 or sum(shares.values()) <= 0:
        raise ValueError(
            f"worlds must map some of {', '.join(WORLDS)} to shares, got {dict(shares)}"
        )
    chance = np.array(list(shares.values())) / sum(shares.values())
    build, _ = WORLDS[str(rng.choice(list(shares), p=chance))]
    draft = build(rng)
    light_up(draft, rng)
    return draft
