"""Procedural tileable patterns, and how textures are packed with their mip pyramid.

A bake is numpy on the CPU: one call makes SIZE x SIZE x 3 sRGB values in [0, 1] that repeat without
a seam. `pack` turns it into one int32 per texel (R, G, B, unused) for all mip levels, so that the
renderer fetches a texel with a single gather. Features are large on purpose: the model that learns
from these worlds is small.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.floating]  # (SIZE, SIZE, 3) or (SIZE, SIZE)
SIZE = 128
NUM_LEVELS = 8
LEVEL_START = [sum(4 ** (7 - k) for k in range(level)) for level in range(NUM_LEVELS)]
NUM_TEXELS = sum(4 ** (7 - k) for k in range(NUM_LEVELS))

_AXIS = np.arange(SIZE, dtype=np.float32) / SIZE
U, V = np.meshgrid(_AXIS, _AXIS)
_FX = np.fft.rfftfreq(SIZE, 1 / SIZE)[None, :]
_FY = np.fft.fftfreq(SIZE, 1 / SIZE)[:, None]


def noise(
    rng: np.random.Generator,
    slope: float = 1.6,
    stretch: tuple[float, float] = (1, 1),
    low: float = 0.0,
) -> Image:
    """Tileable noise in [-1, 1] with spectrum 1 / f ** slope above the frequency `low`."""
    radius = np.hypot(_FX * stretch[0], _FY * stretch[1])
    amplitude = np.where(
        radius > low, 1.0 / np.maximum(radius, 1.0) ** slope * np.exp(-((radius / 40) ** 2)), 0.0
    )
    spectrum = amplitude * np.exp(2j * np.pi * rng.random(amplitude.shape))
    spectrum[0, 0] = 0
    field = np.fft.irfft2(spectrum, (SIZE, SIZE))
    return np.asarray(np.clip(field / (2.2 * field.std() + 1e-9), -1, 1), dtype=np.float32)


def hsv(h: float, s: float, v: float) -> Image:
    return np.array(
        colorsys.hsv_to_rgb(h % 1.0, min(max(s, 0), 1), min(max(v, 0), 1)), dtype=np.float32
    )


def vary(rng: np.random.Generator, colour: Image, value: float = 0.12, hue: float = 0.02) -> Image:
    """A neighbour of a colour in the same harmony."""
    h, s, v = colorsys.rgb_to_hsv(*(float(c) for c in colour))
    return hsv(
        h + rng.uniform(-hue, hue),
        s * rng.uniform(0.85, 1.15),
        v * (1 + rng.uniform(-value, value)),
    )


def mix(a: Image, b: Image, weight: Image) -> Image:
    """Blend two colours (3,) or images (SIZE, SIZE, 3) by a (SIZE, SIZE) weight."""
    return np.asarray(a + (b - a) * weight[..., None], dtype=np.float32)


def smooth(edge: float, softness: float, value: Image) -> Image:
    x = np.clip((value - edge) / softness + 0.5, 0, 1)
    return np.asarray(x * x * (3 - 2 * x), dtype=np.float32)


def _cells(rng: np.random.Generator, ix: Image, iy: Image, nx: int, ny: int) -> Image:
    """A random value in [-1, 1] for every integer cell, periodic in nx x ny."""
    table = rng.uniform(-1, 1, (ny, nx)).astype(np.float32)
    return np.asarray(table[iy.astype(int) % ny, ix.astype(int) % nx])


def _seam(fx: Image, fy: Image, gap_x: float, gap_y: float) -> Image:
    """1 inside a cell, 0 on its border; the gaps are fractions of the cell."""
    dx, dy = np.minimum(fx, 1 - fx), np.minimum(fy, 1 - fy)
    return smooth(gap_x, gap_x, dx) * smooth(gap_y, gap_y, dy)


def tiles(rng: np.random.Generator, base: Image) -> Image:
    n = int(rng.integers(3, 7))
    x, y = U * n, V * n
    value = _cells(rng, x, y, n, n)
    other = vary(rng, base, 0.5, 0.05)
    even = ((x.astype(int) + y.astype(int)) % 2).astype(np.float32)
    if n % 2 or rng.random() < 0.4:
        even = value * 0.5 + 0.5
    body = mix(base, other, even) * (1 + 0.08 * noise(rng, 1.3) + 0.06 * value)[..., None]
    return mix(base * 0.6 + 0.1, body, _seam(x % 1, y % 1, 0.03, 0.03))


def planks(rng: np.random.Generator, base: Image) -> Image:
    rows, joints = int(rng.integers(5, 10)), 2
    y = V * rows
    shift = rng.random(rows).astype(np.float32)[y.astype(int)]
    x = (U * joints + shift) % joints
    value = _cells(rng, x, y, joints, rows)
    grain = noise(rng, 1.1, (5.0, 0.7), 1.0)
    body = base * (1 + 0.2 * value + 0.18 * grain)[..., None]
    warm = vary(rng, base, 0.1, 0.015) * (1 + 0.18 * grain)[..., None]
    seam = _seam(x % 1, y % 1, 0.012, 0.06)
    return mix(base * 0.4, mix(body, warm, value * 0.5 + 0.5), seam)


def bricks(rng: np.random.Generator, base: Image) -> Image:
    nx, ny = int(rng.integers(4, 7)), 2 * int(rng.integers(4, 7))
    y = V * ny
    x = (U * nx + 0.5 * (y.astype(int) % 2)) % nx
    value = _cells(rng, x, y, nx, ny)
    body = base * (1 + 0.22 * value + 0.14 * noise(rng, 1.2))[..., None]
    mortar = hsv(0.09, 0.08, rng.uniform(0.5, 0.8))
    return mix(mortar, body, _seam(x % 1, y % 1, 0.05, 0.09))


def marble(rng: np.random.Generator, base: Image) -> Image:
    veins = np.exp(-np.abs(noise(rng, 2.0, (1, 1.7))) * 14) * (0.5 + 0.5 * noise(rng, 1.8))
    dark = vary(rng, base, 0.2, 0.05) * 0.5
    body = base * (1 + 0.12 * noise(rng, 1.7))[..., None]
    return mix(body, dark, np.clip(veins * 1.3, 0, 0.85).astype(np.float32))


def plaster(rng: np.random.Generator, base: Image) -> Image:
    stain = smooth(0.35, 0.5, noise(rng, 2.0)) * rng.uniform(0.1, 0.45)
    body = base * (1 + 0.07 * noise(rng, 1.6) + 0.03 * noise(rng, 0.9))[..., None]
    return mix(body, vary(rng, base, 0.1, 0.04) * 0.72, stain)


def fabric(rng: np.random.Generator, base: Image) -> Image:
    n = int(rng.integers(8, 14))
    weave = np.sin(2 * np.pi * n * U) * np.sin(2 * np.pi * n * V)
    band = smooth(0.0, 0.6, np.sin(2 * np.pi * 2 * (U + V)).astype(np.float32))
    body = base * (1 + 0.12 * weave + 0.1 * noise(rng, 1.4))[..., None]
    return mix(
        body.astype(np.float32),
        vary(rng, base, 0.35, 0.04),
        np.asarray(0.5 * band, dtype=np.float32),
    )


def stripes(rng: np.random.Generator, base: Image) -> Image:
    n = int(rng.integers(4, 9))
    wave = np.sin(2 * np.pi * n * U).astype(np.float32)
    thin = smooth(0.86, 0.15, np.abs(np.sin(np.pi * n * U + 0.8)).astype(np.float32))
    second = vary(rng, base, 0.35, 0.03)
    body = mix(mix(base, second, smooth(rng.uniform(-0.4, 0.4), 0.25, wave)), base * 0.6, thin)
    return np.asarray(body * (1 + 0.05 * noise(rng, 1.5))[..., None], dtype=np.float32)


def terrazzo(rng: np.random.Generator, base: Image) -> Image:
    image = np.asarray(base * (1 + 0.04 * noise(rng, 1.4))[..., None], dtype=np.float32)
    jag = 0.012 * noise(rng, 1.0)
    reach = np.arange(-15, 17)  # texels: no chip is larger, so only this patch is painted
    for _ in range(int(rng.integers(30, 55))):
        cx, cy, r = rng.random(), rng.random(), rng.uniform(0.02, 0.055)
        patch = np.ix_((int(cy * SIZE) + reach) % SIZE, (int(cx * SIZE) + reach) % SIZE)
        dx = np.abs((U[patch] - cx + 0.5) % 1 - 0.5)
        dy = np.abs((V[patch] - cy + 0.5) % 1 - 0.5)
        inside = r - np.hypot(dx * rng.uniform(0.7, 1.4), dy) + jag[patch]
        chip = smooth(0.0, 0.012, inside.astype(np.float32))
        image[patch] = mix(image[patch], vary(rng, base, 0.5, 0.12), chip)
    return image


def clouds(rng: np.random.Generator, base: Image) -> Image:
    other = vary(rng, base, 0.4, 0.08)
    return mix(mix(base, other, noise(rng, 1.8) * 0.5 + 0.5), base * 1.2, noise(rng, 1.3) * 0.25)


def diamonds(rng: np.random.Generator, base: Image) -> Image:
    n = int(rng.integers(3, 6))
    a, b = (U + V) * n, (U - V) * n
    value = _cells(rng, np.floor(a), np.floor(b) + 64 * n, n, n)
    body = mix(base, vary(rng, base, 0.5, 0.06), value * 0.5 + 0.5)
    return mix(
        base * 0.55,
        body * (1 + 0.06 * noise(rng, 1.4))[..., None],
        _seam(a % 1, b % 1, 0.035, 0.035),
    )


def marks(rng: np.random.Generator, base: Image) -> Image:
    """Lettering-like strokes in rows, as on a poster or on the spines of books."""
    rows, columns = int(rng.integers(4, 7)), 24
    ink = rng.random((rows * 4, columns)) < 0.5
    ink[0::4] = False
    ink[:, 0::4] = False
    ink &= (rng.random((rows, columns // 4)) < 0.8).repeat(4, 0).repeat(4, 1)
    mask = ink[(V * rows * 4).astype(int), (U * columns).astype(int)].astype(np.float32)
    body = base * (1 + 0.05 * noise(rng, 1.6))[..., None]
    light = hsv(rng.random(), 0.2, 0.9) if base.mean() < 0.5 else hsv(rng.random(), 0.5, 0.25)
    return mix(body.astype(np.float32), light, mask)


def books(rng: np.random.Generator, base: Image) -> Image:
    rows, n = 4, 24
    image = np.empty((SIZE, SIZE, 3), dtype=np.float32)
    hue = rng.random()
    for row in range(rows):
        edges = np.sort(np.concatenate([[0.0], rng.random(n) * 0.97 + 0.03]))
        index = np.searchsorted(edges, _AXIS, side="right") - 1
        palette = np.stack(
            [
                hsv(
                    hue + rng.choice([0, 0.08, 0.5]),
                    rng.uniform(0.3, 0.65),
                    rng.uniform(0.3, 0.8),
                )
                for _ in range(n + 1)
            ]
        )
        top = rng.uniform(0.1, 0.4, n + 1)[index]
        ys = (np.arange(SIZE // rows) / (SIZE // rows))[:, None]
        strip = np.where((ys > top)[..., None], palette[index][None], base * 0.25)
        image[row * SIZE // rows : (row + 1) * SIZE // rows] = strip
    return image


def painting(rng: np.random.Generator, base: Image) -> Image:
    """An abstract canvas with a frame; shown once over the face of a picture."""
    hue = rng.random()
    sky, ground = hsv(hue, 0.35, 0.85), hsv(hue + 0.45, 0.4, 0.55)
    image = mix(sky, ground, smooth(rng.uniform(0.35, 0.7), 0.06, V + 0.12 * noise(rng, 2.2)))
    for _ in range(int(rng.integers(3, 7))):
        colour = hsv(hue + rng.choice([0, 0.08, 0.5, 0.58]), 0.6, rng.uniform(0.3, 0.95))
        dx, dy = U - rng.uniform(0.15, 0.85), V - rng.uniform(0.15, 0.85)
        a, b = rng.uniform(0.06, 0.22, 2)
        inside = (
            1 - np.hypot(dx / a, dy / b)
            if rng.random() < 0.5
            else 1 - np.maximum(np.abs(dx) / a, np.abs(dy) / b)
        )
        image = mix(image, colour, smooth(0.0, 0.15, inside.astype(np.float32)))
    border = np.minimum(np.minimum(U, 1 - U), np.minimum(V, 1 - V))
    return mix(base * 0.4, image, smooth(0.06, 0.02, border))


PATTERNS: dict[str, Callable[[np.random.Generator, Image], Image]] = {
    "tiles": tiles,
    "planks": planks,
    "bricks": bricks,
    "marble": marble,
    "plaster": plaster,
    "fabric": fabric,
    "stripes": stripes,
    "terrazzo": terrazzo,
    "clouds": clouds,
    "diamonds": diamonds,
    "marks": marks,
    "books": books,
    "painting": painting,
}


def pack(image: Image) -> NDArray[np.int32]:
    """(NUM_TEXELS,) int32 of an image (SIZE, SIZE, 3) in [0, 1]: its mip levels, finest first."""
    levels = []
    while True:
        size = len(image)
        rgba = np.zeros((size, size, 4), dtype=np.uint8)
        rgba[..., :3] = np.round(image * 255)
        levels.append(rgba.view(np.int32).reshape(-1))
        if size == 1:
            return np.concatenate(levels)
        rows = image[0::2] + image[1::2]
        image = 0.25 * (rows[:, 0::2] + rows[:, 1::2])
