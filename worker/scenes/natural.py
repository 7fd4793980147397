"""Surfaces as photographs show them: wood, stone, concrete, cloth, print, ground, weather.

Each family has natural statistics: noise over many octaves, irregular cells, stains; none repeats
within a period. The same contract as `textures`: (generator, base colour) -> one tileable image.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from worker.scenes.textures import SIZE, Image, U, V, hsv, mix, noise, smooth, vary

Rng = np.random.Generator


def weathered(rng: Rng, image: Image) -> Image:
    """Fine grain and broad dirt over any surface, a few per cent each."""
    grain = rng.uniform(0.02, 0.06) * noise(rng, 0.9) + rng.uniform(0.02, 0.07) * noise(rng, 1.9)
    return np.asarray(image * (1 + grain)[..., None], dtype=np.float32)


def voronoi(rng: Rng, num: int, stretch: float = 1.0) -> tuple[Image, Image, NDArray[np.int64]]:
    """Nearest distance, second nearest (in periods) and index of the nearest of `num` sites on a
    jittered grid.
    """
    rows = max(2, round((num / stretch) ** 0.5))
    columns = max(2, round(num / rows))
    row, column = (value.ravel() for value in np.mgrid[0:rows, 0:columns])
    jitter = rng.uniform(0.1, 0.9, (2, rows * columns))
    sites = np.stack([(column + jitter[0] + 0.5 * (row % 2)) / columns, (row + jitter[1]) / rows])
    first = np.full((SIZE, SIZE), 9.0, dtype=np.float32)
    second, nearest = first.copy(), np.zeros((SIZE, SIZE), dtype=np.int64)
    for index, (x, y) in enumerate(sites.T.astype(np.float32)):
        dx = np.abs((U[:1] - x + 0.5) % 1 - 0.5)
        dy = np.abs((V[:, :1] - y + 0.5) % 1 - 0.5)
        distance = np.hypot(dx, dy * stretch)
        closer = distance < first
        second = np.where(closer, first, np.minimum(second, distance))
        nearest = np.where(closer, index, nearest)
        first = np.where(closer, distance, first)
    return first, second, nearest


def stones(rng: Rng, base: Image, num: int, stretch: float, joint: float) -> Image:
    first, second, nearest = voronoi(rng, num, stretch)
    value = rng.uniform(-1, 1, nearest.max() + 1).astype(np.float32)[nearest]
    hue = rng.random(nearest.max() + 1).astype(np.float32)[nearest]
    relief = 1 - 0.25 * (first * num**0.5) ** 2
    body = mix(base, vary(rng, base, 0.15, 0.04), hue)
    body = body * (relief * (1 + 0.16 * value + 0.12 * noise(rng, 1.1)))[..., None]
    mortar = vary(rng, base, 0.1, 0.01) * rng.uniform(0.45, 0.8)
    edge = smooth(joint, joint, (second - first) * num**0.5 + 0.1 * noise(rng, 1.2))
    return mix(mortar, body.astype(np.float32), edge)


def rubble(rng: Rng, base: Image) -> Image:
    return stones(rng, base, int(rng.integers(24, 56)), rng.uniform(1.2, 1.9), 0.12)


def cobble(rng: Rng, base: Image) -> Image:
    return stones(rng, base, int(rng.integers(36, 64)), 1.0, 0.16)


def flagstones(rng: Rng, base: Image) -> Image:
    return stones(rng, base, int(rng.integers(8, 16)), 1.0, 0.06)


def concrete(rng: Rng, base: Image) -> Image:
    streaks = smooth(0.3, 0.6, noise(rng, 1.5, (2.5, 0.4))) * rng.uniform(0.0, 0.35)
    pits = smooth(0.72, 0.15, noise(rng, 0.5, low=8.0)) * 0.3
    body = base * (1 + 0.09 * noise(rng, 1.3) + 0.04 * noise(rng, 0.7))[..., None]
    image = mix(body.astype(np.float32), base * 0.6, streaks)
    n = int(rng.integers(0, 3))
    if n:  # cast in panels
        seam = np.minimum(smooth(0.012, 0.012, _gap(U * n)), smooth(0.012, 0.012, _gap(V * n)))
        image = mix(base * 0.55, image, seam)
    return mix(image, base * 0.5, pits)


def _gap(x: Image) -> Image:
    return np.asarray(np.minimum(x % 1, 1 - x % 1), dtype=np.float32)


def wood(rng: Rng, base: Image) -> Image:
    """Sawn along the trunk: bent rings, pores, and boards of differing tone."""
    boards = int(rng.integers(1, 5))
    board = (V * boards).astype(int)
    tone = rng.uniform(-1, 1, boards).astype(np.float32)[board]
    bend = noise(rng, 2.2, (0.6, 1.6)) + tone
    rings = np.sin(2 * np.pi * (rng.uniform(4, 9) * V + 1.1 * bend)).astype(np.float32)
    pores = noise(rng, 0.8, (9.0, 0.5), 3.0)
    body = base * (1 + 0.13 * tone + 0.1 * pores)[..., None]
    image = mix(body.astype(np.float32), vary(rng, base, 0.1, 0.01) * 0.72, 0.3 + 0.3 * rings)
    return mix(base * 0.45, image, smooth(0.012, 0.02, _gap(V * boards))) if boards > 1 else image


def knit(rng: Rng, base: Image) -> Image:
    """Coarse cloth in heathered yarn."""
    n = int(rng.integers(12, 20))
    weave = np.sin(2 * np.pi * n * (U + 0.25 * np.sin(2 * np.pi * n * V) / n))
    tone = 0.09 * weave + 0.12 * noise(rng, 0.8) + 0.08 * noise(rng, 1.8)
    return np.asarray(base * (1 + tone)[..., None], dtype=np.float32)


def tartan(rng: Rng, base: Image) -> Image:
    image = np.broadcast_to(base, (SIZE, SIZE, 3)).astype(np.float32)
    for _ in range(int(rng.integers(2, 5))):
        at, width = rng.random(), rng.uniform(0.03, 0.16)
        colour = vary(rng, base, 0.6, rng.choice([0.04, 0.3]))
        for axis in (U, V):
            band = smooth(0.0, 0.01, width - np.abs((axis - at + 0.5) % 1 - 0.5))
            image = mix(image, colour, 0.45 * band)
    return np.asarray(image * (1 + 0.08 * noise(rng, 0.8))[..., None], dtype=np.float32)


def carpet(rng: Rng, base: Image) -> Image:
    """A border and a field of ornament, worn."""
    edge = np.minimum(np.minimum(U, 1 - U), np.minimum(V, 1 - V))
    fold = np.abs(U - 0.5) * rng.uniform(1, 2), np.abs(V - 0.5) * rng.uniform(1, 2)
    k = rng.integers(2, 6, 4)
    wave = np.cos(2 * np.pi * (k[0] * fold[0] + k[1] * fold[1])) * np.cos(
        2 * np.pi * (k[2] * fold[0] - k[3] * fold[1])
    )
    other = vary(rng, base, 0.4, rng.choice([0.05, 0.4]))
    image = mix(base, other, smooth(rng.uniform(-0.2, 0.3), 0.25, wave.astype(np.float32)))
    image = mix(vary(rng, other, 0.2), image, smooth(rng.uniform(0.08, 0.14), 0.02, edge))
    return np.asarray(image * (1 + 0.1 * noise(rng, 0.9))[..., None], dtype=np.float32)


def grass(rng: Rng, base: Image) -> Image:
    dry = vary(rng, base, 0.2, 0.05) * np.array([1.25, 1.05, 0.8], dtype=np.float32)
    image = mix(base, dry, smooth(0.1, 0.9, noise(rng, 1.6)))
    blades = 0.2 * noise(rng, 0.4, (1.6, 0.8), 4.0) + 0.12 * noise(rng, 1.1)
    return np.asarray(image * (1 + blades)[..., None], dtype=np.float32)


def gravel(rng: Rng, base: Image) -> Image:
    stone = 0.2 * noise(rng, 0.3, low=10.0) + 0.1 * noise(rng, 1.3)
    image = mix(base, vary(rng, base, 0.2, 0.05), noise(rng, 0.6) * 0.5 + 0.5)
    return np.asarray(image * (1 + stone)[..., None], dtype=np.float32)


def foliage(rng: Rng, base: Image) -> Image:
    clumps = noise(rng, 0.9, low=2.0)
    light = vary(rng, base, 0.1, 0.05) * 1.3
    image = mix(base, light, smooth(0.1, 0.5, clumps))
    return mix(image, base * 0.35, smooth(0.45, 0.4, noise(rng, 0.8, low=4.0)) * 0.8)


def metal(rng: Rng, base: Image) -> Image:
    grey = base * 0.35 + 0.65 * base.mean()
    rust = hsv(0.06, 0.6, 0.4)
    brushed = grey * (1 + 0.08 * noise(rng, 0.7, (0.4, 6.0)) + 0.06 * noise(rng, 1.8))[..., None]
    spots = smooth(rng.uniform(0.45, 0.9), 0.25, noise(rng, 1.4)) * 0.7
    n = int(rng.integers(2, 5))
    seam = np.minimum(smooth(0.02, 0.02, _gap(U * n)), smooth(0.02, 0.02, _gap(V * n)))
    return mix(grey * 0.5, mix(brushed.astype(np.float32), rust, spots), seam)


def damask(rng: Rng, base: Image) -> Image:
    """Wallpaper: a curled ornament in two tones."""
    n = int(rng.integers(2, 5))
    x, y = 2 * np.pi * n * U, 2 * np.pi * n * V
    wave = np.cos(x) * np.cos(y) + 0.6 * np.cos(2 * x + np.sin(y)) + 0.4 * np.cos(3 * y - np.cos(x))
    other = vary(rng, base, 0.25, 0.03)
    return mix(base, other, smooth(rng.uniform(-0.1, 0.4), 0.3, wave.astype(np.float32)) * 0.7)


def page(rng: Rng, base: Image) -> Image:
    """A printed sheet: headline, paragraphs of words, now and then a picture."""
    paper = hsv(rng.random(), rng.uniform(0.02, 0.25), rng.uniform(0.8, 0.95))
    ink = hsv(rng.random(), rng.uniform(0.1, 0.7), rng.uniform(0.1, 0.4))
    mask = np.zeros((SIZE, SIZE), dtype=np.float32)
    top, margin = int(rng.integers(6, 12)), int(rng.integers(6, 14))
    height = int(rng.integers(9, 16))
    while top + height < SIZE - 6:
        _line(rng, mask[top : top + height], margin, rng.uniform(0.5, 1.0))
        top += round(height * 1.5)
        height = int(rng.choice([4, 5, 5, 6])) if rng.random() < 0.85 else int(rng.integers(8, 14))
    image = mix(paper, ink, mask)
    if rng.random() < 0.5:
        h, w = rng.integers(28, 64, 2)
        y, x = int(rng.integers(20, SIZE - h - 8)), int(rng.integers(8, SIZE - w - 8))
        image[y : y + h, x : x + w] = landscape(rng, base)[:: SIZE // h, :: SIZE // w][:h, :w]
    return image


def _line(rng: Rng, rows: Image, margin: int, filled: float) -> None:
    """Letter-like glyphs of upright, lying and slanted strokes, in words."""
    height = len(rows)
    width = max(3, round(height * 0.62))
    x = margin
    while x + width < margin + (SIZE - 2 * margin) * filled:
        if rng.random() < 0.18:
            x += width
            continue
        glyph = rows[:, x : x + width - 1]
        stroke = max(1, height // 6)
        middle = int(rng.integers(height // 3, height - stroke))
        for kind in rng.choice(5, 2, replace=False):
            if kind == 0:
                glyph[:, :stroke] = 1
            elif kind == 1:
                glyph[height // 3 :, -stroke:] = 1
            elif kind == 2:
                glyph[middle : middle + stroke] = 1
            elif kind == 3:
                glyph[-stroke:] = 1
            else:
                glyph[np.arange(height), np.arange(height) * (width - 1) // height] = 1
        x += width


def landscape(rng: Rng, base: Image) -> Image:
    """Hills behind hills under a sky: a painting or a photograph on a wall."""
    hue = rng.random()
    top, low = hsv(rng.uniform(0.52, 0.66), 0.4, 0.75), hsv(rng.uniform(0.0, 0.15), 0.25, 0.92)
    image = mix(top, low, smooth(0.3, 0.6, V + 0.1 * noise(rng, 1.8)))
    if rng.random() < 0.5:
        away = np.hypot(U - rng.uniform(0.2, 0.8), V - rng.uniform(0.15, 0.4))
        image = mix(image, hsv(0.12, 0.2, 0.98), smooth(0.0, 0.04, rng.uniform(0.03, 0.08) - away))
    layers = int(rng.integers(2, 5))
    for layer in range(layers):
        ridge = noise(rng, 1.7 - 0.2 * layer)[0][None] * 0.1 + 0.4 + 0.5 * layer / layers
        near = (layer + 1) / layers
        colour = low + (hsv(hue + 0.08 * layer, 0.5, 0.45) - low) * near
        body = colour * (1 + 0.22 * near * noise(rng, 1.0))[..., None]
        image = mix(image, body.astype(np.float32), smooth(0.0, 0.015, V - ridge))
    return _framed(rng, image, base)


def still_life(rng: Rng, base: Image) -> Image:
    """Blurred round things upon a table, in one light."""
    hue = rng.random()
    wall, table = hsv(hue, 0.3, 0.35), hsv(hue + rng.uniform(-0.1, 0.1), 0.4, 0.55)
    image: Image = mix(wall, table, smooth(0.62, 0.03, V)) * (0.8 + 0.4 * U)[..., None]
    for _ in range(int(rng.integers(3, 7))):
        x, y, r = rng.uniform(0.2, 0.8), rng.uniform(0.5, 0.75), rng.uniform(0.06, 0.16)
        dx, dy = (U - x) / r, (V - y) / (r * rng.uniform(0.8, 1.6))
        shade = np.clip(0.75 + 0.35 * (dx - dy), 0.25, 1.3)
        body = hsv(hue + rng.uniform(-0.25, 0.25), 0.55, rng.uniform(0.4, 0.9)) * shade[..., None]
        image = mix(image, body.astype(np.float32), smooth(0.0, 0.1, 1 - np.hypot(dx, dy)))
    image = image * (1 + 0.06 * noise(rng, 1.2))[..., None]
    return _framed(rng, np.asarray(image, dtype=np.float32), base)


def _framed(rng: Rng, image: Image, base: Image) -> Image:
    border = np.minimum(np.minimum(U, 1 - U), np.minimum(V, 1 - V))
    return mix(base * rng.uniform(0.3, 0.9), image, smooth(rng.uniform(0.03, 0.07), 0.02, border))


def door(rng: Rng, base: Image) -> Image:
    """Panels with a bevel and a handle; shown once over a door's face."""
    plain = np.ones_like(U)[..., None] * base
    body = wood(rng, base).swapaxes(0, 1) if rng.random() < 0.6 else weathered(rng, plain)
    columns, rows = int(rng.integers(1, 3)), int(rng.integers(1, 4))
    inset = np.minimum(_gap(U * columns) / columns, _gap(V * rows) / rows)
    bevel = smooth(0.05, 0.012, inset) - smooth(0.075, 0.012, inset)
    body = mix(body, body * 0.6, bevel)
    knob = np.hypot((U - 0.9) * 0.45, V - 0.52)
    image = mix(body, hsv(0.12, 0.3, 0.75), smooth(0.0, 0.008, 0.018 - knob))
    return _framed(rng, image, base * 0.9)


def window(rng: Rng, base: Image) -> Image:
    """Panes that show a bright or a dark outside behind a painted frame."""
    glass = hsv(rng.uniform(0.5, 0.62), rng.uniform(0.1, 0.4), rng.uniform(0.3, 0.85))
    pane = mix(glass * 0.75, glass, smooth(0.2, 0.9, V * 0.5 + U * 0.4 + 0.3 * noise(rng, 2.0)))
    columns, rows = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    bars = np.minimum(smooth(0.05, 0.02, _gap(U * columns)), smooth(0.04, 0.02, _gap(V * rows)))
    return mix(hsv(rng.random(), 0.1, rng.uniform(0.35, 0.95)), pane, bars)


def sky(rng: Rng, base: Image) -> Image:
    """Cloud cover as grey levels: 0 clear, 1 white."""
    cover = smooth(rng.uniform(-0.1, 0.6), rng.uniform(0.5, 1.2), noise(rng, 1.7))
    return np.repeat(0.9 * cover[..., None], 3, axis=2).astype(np.float32)


FAMILIES = {
    "rubble": rubble,
    "cobble": cobble,
    "flagstones": flagstones,
    "concrete": concrete,
    "wood": wood,
    "knit": knit,
    "tartan": tartan,
    "carpet": carpet,
    "grass": grass,
    "gravel": gravel,
    "foliage": foliage,
    "metal": metal,
    "damask": damask,
    "page": page,
    "landscape": landscape,
    "still_life": still_life,
    "door": door,
    "window": window,
    "sky": sky,
}
PICTURES = ("page", "landscape", "still_life", "painting", "marks", "sky")  # keep their own finish
