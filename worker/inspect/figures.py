"""Pictures of what a World remembers: from above, over time, by source, and as its cameras see it.

Drawn with matplotlib's object interface: no global state, no display.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from worker.inspect.history import Cloud, History

MAX_DRAWN = 60_000  # points; more are thinned evenly
HEADROOM_M = 0.3  # what lies higher above the cameras is a ceiling and would hide the rest
OBSERVED, GENERATED = "#d1495b", "#30638e"
DPI = 110


def write_figures(history: History, folder: Path, title: str) -> list[Path]:
    """Write every picture to `folder`; the paths, in the order to look at them."""
    folder.mkdir(parents=True, exist_ok=True)
    drawings: dict[str, Callable[[History], Figure]] = {
        "top": top_view,
        "views": views,
        "coverage": coverage_over_time,
        "sources": points_by_source,
    }
    paths = []
    for name, draw in drawings.items():
        figure = draw(history)
        figure.suptitle(title, fontsize=10)
        FigureCanvasAgg(figure)
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1], dpi=DPI)
    return paths


def top_view(history: History) -> Figure:
    """The points from above, without the ceiling, coloured in four ways; the cameras' path."""
    cloud = seen_from_above(history)
    newest = len(history.sources) - 1
    figure = Figure(figsize=(12, 11), layout="constrained")
    grid = figure.subplots(2, 2, sharex=True, sharey=True)
    quality = np.log10(np.maximum(cloud.quality, 1e-9))
    drawings: list[tuple[str, Any, str | None, str]] = [
        ("colours of the pictures", cloud.colours / 255, None, ""),
        ("source: the view that each point stems from", cloud.source, "viridis", "view"),
        ("age", newest - cloud.source, "magma_r", "views since the point was seen"),
        ("quality", quality, "cividis", "log10 of cells per metre x confidence; observed: + 3"),
    ]
    for axes, (name, values, colours, label) in zip(grid.flat, drawings, strict=True):
        dots = _dots(axes, cloud, values, colours)
        _path(axes, history)
        axes.set_title(name, fontsize=10)
        if colours is not None and len(cloud.source):
            bar = axes.inset_axes((1.02, 0.1, 0.03, 0.8))
            figure.colorbar(dots, cax=bar, label=label)
    for axes in grid[1]:
        axes.set_xlabel("x to the right, m")
    for axes in grid[:, 0]:
        axes.set_ylabel("z forward, m")
    return figure


def seen_from_above(history: History) -> Cloud:
    """What is not above the cameras, the highest last, thinned to what can be drawn."""
    cloud = history.cloud()
    cameras_y = history.cameras.world_from_camera[:, 1, 3].numpy()
    height = cloud.positions[:, 1]  # y points down
    order = np.argsort(-height, kind="stable")
    order = order[height[order] > cameras_y.min() - HEADROOM_M]
    order = order[:: max(1, -(-len(order) // MAX_DRAWN))]
    return Cloud(*(value[order] for value in vars(cloud).values()))


def _dots(axes: Axes, cloud: Cloud, values: NDArray[Any], colours: str | None) -> PathCollection:
    size = float(np.clip(40_000 / max(1, len(values)), 0.5, 20))
    x, z = cloud.positions[:, 0], cloud.positions[:, 2]
    axes.set_aspect("equal")
    axes.set_facecolor("#f2f2f2")
    axes.grid(color="white", linewidth=0.8)
    axes.set_axisbelow(True)
    return axes.scatter(x, z, c=values, cmap=colours, s=size, linewidths=0)


def _path(axes: Axes, history: History) -> None:
    """Where the cameras stood, and where they looked at the first and last view."""
    poses = history.cameras.world_from_camera.numpy()
    x, z = poses[:, 0, 3], poses[:, 2, 3]
    axes.plot(x, z, color="white", linewidth=3)
    axes.plot(x, z, color="black", linewidth=1.2, marker=".", markersize=3, label="cameras")
    for row, colour, name in ((0, "#2a9d3a", "first view"), (-1, "#e8550c", "last view")):
        look = (poses[row, 0, 2], poses[row, 2, 2])
        axes.quiver(
            x[row], z[row], *look, color=colour, scale=14, width=0.012, zorder=5, label=name
        )
    axes.legend(loc="upper right", fontsize=7)


def views(history: History) -> Figure:
    """Six views of the path: the picture, and what the memory shows there now."""
    shown = [i for i, source in enumerate(history.sources) if source.frame is not None]
    picked = [shown[i * (len(shown) - 1) // 5] for i in range(6)] if len(shown) > 1 else shown
    picked = sorted(set(picked))
    readout = history.memory.read(history.cameras[picked], "nearest")
    known = (readout.coverage > 0).numpy()
    rows: dict[str, tuple[NDArray[Any], str, str]] = {
        "source": (readout.source.numpy().astype(float), "viridis", "view"),
        "depth": (readout.depth.numpy(), "magma", "m"),
        "quality": (np.log10(readout.quality.clamp(min=1e-9).numpy()), "cividis", "log10"),
    }
    figure = Figure(figsize=(2.4 * len(picked) + 1, 7.4), layout="constrained")
    grid = figure.subplots(4, len(picked), squeeze=False)
    for axes, number in zip(grid[0], picked, strict=True):
        source = history.sources[number]
        axes.imshow(source.picture)
        axes.set_title(f"frame {source.frame}", fontsize=9)
    for line, (name, (values, colours, unit)) in zip(grid[1:], rows.items(), strict=True):
        visible = values[known]
        low, high = (visible.min(), visible.max()) if len(visible) else (0, 1)
        for axes, value, mask in zip(line, values, known, strict=True):
            image = axes.imshow(np.where(mask, value, np.nan), cmap=colours, vmin=low, vmax=high)
            axes.set_facecolor("#d0d0d0")
        figure.colorbar(image, ax=list(line), label=f"{name}, {unit}")
    for axes in grid.flat:
        axes.set_xticks([])
        axes.set_yticks([])
    return figure


def coverage_over_time(history: History) -> Figure:
    """How much of each view the memory knew beforehand, and how the memory grew."""
    figure = Figure(figsize=(10, 6.5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    share = 100 * np.array([source.coverage for source in history.sources])
    observed = np.array([source.observed for source in history.sources])
    numbers = np.arange(len(share))
    above.plot(numbers, share, color=GENERATED, linewidth=1)
    for flag, colour, name in ((False, GENERATED, "generated"), (True, OBSERVED, "observed")):
        rows = observed == flag
        if rows.any():
            above.plot(numbers[rows], share[rows], ".", color=colour, label=name)
    above.set_ylim(-3, 103)
    above.set_ylabel("known before, % of the cells")
    above.legend(loc="lower right", fontsize=8)
    ends = [size.num_sources - 1 for size in history.sizes]
    below.plot(ends, [size.num_points for size in history.sizes], color="black", marker=".")
    below.set_ylabel("points")
    below.set_ylim(bottom=0)
    bytes_axis = below.twinx()
    bytes_axis.plot(ends, [size.num_bytes / 1e3 for size in history.sizes], alpha=0)
    bytes_axis.set_ylabel("kB")
    bytes_axis.set_ylim(bottom=0)
    below.set_xlabel("view")
    _whole_numbers(below)
    for axes in (above, below):
        axes.grid(alpha=0.3)
    return figure


def points_by_source(history: History) -> Figure:
    """How many points each view added, and how many of those are left."""
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    axes = figure.subplots()
    numbers = np.arange(len(history.sources))
    left = np.bincount(history.cloud().source, minlength=len(numbers))
    written = [source.num_written for source in history.sources]
    colours = [OBSERVED if source.observed else GENERATED for source in history.sources]
    axes.bar(numbers, written, color="#dddddd", width=0.9, label="added")
    axes.bar(numbers, left, color=colours, width=0.9)
    for colour, name in ((OBSERVED, "left of observed"), (GENERATED, "left of generated")):
        if colour in colours:
            axes.bar([0], [0], color=colour, label=name)
    axes.set_xlabel("view")
    axes.set_ylabel("points")
    axes.legend(fontsize=8)
    _whole_numbers(axes)
    return figure


def _whole_numbers(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
