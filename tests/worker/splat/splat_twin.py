"""The splat's rules once more: float64, one point and one cell at a time."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NEAR_M, TIGHT, FILL, MAX_SPAN, FRONT, MIN_TENT = 0.05, 33 / 32, 5 / 4, 4.0, 9 / 8, 1 / 64
ASIDE, MOST_ASIDE = 256, 32  # quality codes: quarters of an octave


@dataclass
class Seen:
    point: int
    u: float
    v: float
    z: float
    span_u: float
    span_v: float
    quality: int  # in codes, from there


class AmbiguousError(Exception):
    """Float32 may decide otherwise: a cell lies on the rim of a footprint, or distances tie."""


def look(
    points: dict[str, np.ndarray], pose: np.ndarray, intrinsics: Sequence[float]
) -> list[Seen]:
    """All points in front of the camera, (4, 4) world_from_camera."""
    fx, fy, cx, cy = intrinsics
    inverse = np.linalg.inv(pose)
    found = []
    for i, position in enumerate(points["positions"]):
        x, y, z = np.round(inverse[:3, :3] @ position + inverse[:3, 3], 12)
        if z <= NEAR_M:
            continue
        a, b, c = inverse[:3, :3] @ points["slant"][i]
        span_u = (points["size"][i] + abs(a - c * x / z)) * fx / z
        span_v = points["size"][i] * fy / z + abs(b - c * y / z) * fy / z
        spans = (min(span_u, MAX_SPAN), min(span_v, MAX_SPAN))
        lost = math.dist(points["eye"][i], pose[:3, 3]) / z * ASIDE
        if abs(lost - round(lost)) < 1e-4 and 0 < lost < MOST_ASIDE + 1:
            raise AmbiguousError
        quality = round(4 * math.log2(points["quality"][i])) - int(min(lost, MOST_ASIDE))
        found.append(Seen(i, x * fx / z + cx, y * fy / z + cy, z, *spans, quality))
    return found


def covers(seen: Seen, row: int, column: int, factor: float) -> bool:
    inside = True
    for centre, at, span in ((column, seen.u, seen.span_u), (row, seen.v, seen.span_v)):
        half, offset = max(span * factor, 1.0) / 2, centre + 0.5 - at
        exact = half == 0.5 and math.frexp(seen.z)[0] == 0.5  # dividing by a power of two is
        if not exact and abs(abs(offset) - half) < 1e-5:
            raise AmbiguousError
        inside &= -half < offset <= half
    return inside


def tent(seen: Seen, row: int, column: int) -> float:
    weight = max(0.0, 1 - abs(column + 0.5 - seen.u) / max(seen.span_u, 1.0))
    weight *= max(0.0, 1 - abs(row + 0.5 - seen.v) / max(seen.span_v, 1.0))
    if abs(weight - MIN_TENT) < 1e-5:
        raise AmbiguousError
    return weight if weight >= MIN_TENT else 0.0


def candidates_of(seen: list[Seen], row: int, column: int) -> list[Seen]:
    """The points that cover the cell; if none does, those whose rim does."""
    surface = [s for s in seen if covers(s, row, column, TIGHT)]
    return surface or [s for s in seen if covers(s, row, column, FILL)]


def choose(
    candidates: list[Seen], points: dict[str, np.ndarray], row: int, column: int
) -> list[Seen]:
    """The chosen frame's points on the front surface, the winner first."""
    front = min(seen.z for seen in candidates) * FRONT
    surface = [seen for seen in candidates if seen.z <= front]
    rank = max((s.quality, points["source"][s.point]) for s in surface)
    chosen = [s for s in surface if (s.quality, points["source"][s.point]) == rank]
    distance = [(s.u - column - 0.5) ** 2 + (s.v - row - 0.5) ** 2 for s in chosen]
    order = np.argsort(distance, kind="stable")
    if len(order) > 1 and abs(distance[order[0]] - distance[order[1]]) < 1e-5:
        raise AmbiguousError
    return [chosen[i] for i in order]


def second_surface(
    points: dict[str, np.ndarray],
    pose: np.ndarray,
    intrinsics: Sequence[float],
    grid: tuple[int, int],
    witnesses: bool,
) -> np.ndarray:
    """The winner (h, w) among the points beyond each cell's front surface, or (witnesses) of
    another frame than chosen there; -1 for none.
    """
    seen, winner = look(points, pose, intrinsics), np.full(grid, -1)
    for row, column in np.ndindex(grid):
        surface = [s for s in seen if covers(s, row, column, TIGHT)]
        if not surface:
            continue
        front = min(near.z for near in surface) * FRONT
        frame = points["source"][choose(surface, points, row, column)[0].point]
        second = [
            s for s in surface if s.z > front or (witnesses and points["source"][s.point] != frame)
        ]
        if second:
            winner[row, column] = choose(second, points, row, column)[0].point
    return winner


def splat_view(
    points: dict[str, np.ndarray],
    pose: np.ndarray,
    intrinsics: Sequence[float],
    grid: tuple[int, int],
    soft: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """winner (h, w), depth (h, w), tokens (h, w, c)."""
    seen = look(points, pose, intrinsics)
    winner, depth = np.full(grid, -1), np.zeros(grid)
    tokens = np.zeros((*grid, points["tokens"].shape[1]))
    cells = [(row, column) for row in range(grid[0]) for column in range(grid[1])]
    chosen = {}
    for row, column in cells:
        candidates = candidates_of(seen, row, column)
        if candidates:
            chosen[row, column] = choose(candidates, points, row, column)
    visible = {s.point: s for group in chosen.values() for s in group}
    for (row, column), group in chosen.items():
        first = group[0]
        winner[row, column], depth[row, column] = first.point, first.z
        tokens[row, column] = points["tokens"][first.point]
        if soft:
            front = min(s.z for s in candidates_of(seen, row, column)) * FRONT
            frame = points["source"][first.point]
            same = [s for s in visible.values() if points["source"][s.point] == frame]
            weights = {s.point: tent(s, row, column) for s in same if s.z <= front}
            total = sum(weights.values())
            tokens[row, column] = sum(
                w / total * points["tokens"][point] for point, w in weights.items()
            )
    return winner, depth, tokens
