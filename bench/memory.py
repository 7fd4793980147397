"""The latent memory's time and size: `python -m bench.memory --json out/memory.json`.

Times are medians over interleaved runs on `--threads` threads (minima in the JSON), so that both
sides of every ratio saw the same machine. `--quick` leaves out everything above 1e5 points.

- read: one view, `nearest`, all points in view, beside the painter (bench/painter.py); nine views
  in one call; the bytes that must be touched over the time, as a share of a copy's bandwidth;
- sparse: many more points stored than visible;
- write: a chunk of nine frames into N stored points, with the step's own readout; carving (judging
  what the new views say about old points) is part of it and reported beside it;
- size: five chunks of 33 frames in a room, beside a memory that keeps every cell; a loop walked ten
  times;
- mini: the grid of the small model, beside the plain torch twin.

Axis legend: n points, T frames, C channels, h w the latent grid.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.painter import paint
from worker.geometry import Cameras, cat_cameras, intrinsics_from_fov, look_at
from worker.memory.base import Readout
from worker.memory.fusion import Cells, added
from worker.memory.latent import LatentMemory, LatentMemoryConfig
from worker.memory.sight import see, seen_by_torch
from worker.memory.verdicts import Evidence, judge
from worker.warm import warm_up

GRID, CHANNELS = (44, 80), 48
CELLS = GRID[0] * GRID[1]
FOV_RAD = math.radians(80)
ROOM = (2.5, 1.5, 2.5)  # half extents in metres
SETTLE_S = 0.02  # torch's threads spin for a while after each operation, on cores others need
Report = dict[str, Any]


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    report: Report = {"threads": args.threads, "torch": torch.__version__, "warm_up_s": warm_up()}
    report["copy_gb_per_s"] = copy_bytes_per_s() / 1e9
    sizes = [10_000, 100_000] + ([] if args.quick else [1_000_000])
    report["read"] = {f"{n:.0e}".replace("+0", ""): read(n, args.runs) for n in sizes}
    largest = 1_000_000 if args.quick else 10_000_000
    report["sparse"] = sparse(largest, args.runs)
    stored = [100_000, 1_000_000] + ([] if args.quick else [10_000_000])
    report["write"] = {f"{n:.0e}".replace("+0", ""): write(n) for n in stored}
    report["size"] = {form: five_chunks(form) for form in ("bfloat16", "int8")}
    report["loops"] = ten_loops()
    report["mini"] = mini(args.runs)
    report["bytes_per_point"] = report["read"]["1e5"].pop("bytes_per_point")
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(report, indent=1) + "\n")
    print_table(report)


def read(num: int, runs: int) -> Report:
    """One view and nine of `num` points, all of them in view."""
    memory, views = clutter(num), around(9)
    view = views[:1]
    state = memory.state()
    positions, tokens = state["positions"].float(), state["tokens"].float()
    calls: dict[str, Callable[[], object]] = {
        "ms": lambda: memory.read(view, "nearest"),
        "painter_ms": lambda: paint(positions, tokens, view),
        "ms_9_views": lambda: memory.read(views, "nearest"),
        "ms_9_calls": lambda: [memory.read(views[i : i + 1], "nearest") for i in range(9)],
        "ms_soft": lambda: memory.read(view, "soft"),
        "ms_fine": lambda: memory.read(view, "fine"),
    }
    found = clocked(calls, max(5, runs if num < 1_000_000 else runs // 2))
    touched = 2 * 8 * num + CELLS * (2 * CHANNELS + 4 * CHANNELS + 60)
    stats = memory.stats()
    return found | {
        "speedup": found["painter_ms"] / found["ms"],
        "nine_views_over_nine_calls": found["ms_9_views"] / found["ms_9_calls"],
        "bandwidth_share": touched / (found["ms"] / 1e3) / copy_bytes_per_s(),
        "bytes_per_point": stats.num_bytes / stats.num_points,
        "in_view": float((memory.read(view, "nearest").coverage > 0).float().mean()),
    }


def sparse(stored: int, runs: int) -> Report:
    """`stored` points of which one in a hundred is visible, beside that hundredth alone."""
    part, all_of_it = clutter(stored // 100), clutter(stored, visible=stored // 100)
    view = around(1)
    found = clocked(
        {
            "ms": lambda: all_of_it.read(view, "nearest"),
            "ms_of_the_visible": lambda: part.read(view, "nearest"),
        },
        runs,
    )
    return found | {"stored": stored, "ratio": found["ms"] / found["ms_of_the_visible"]}


def write(stored: int) -> Report:
    """A chunk of nine frames of the room, into it and `stored` points in all."""
    memory = LatentMemory(CHANNELS, GRID, cfg=LatentMemoryConfig(max_points=2 * stored + 10**6))
    inside = walk(27)
    fill(memory, inside, lambda views: room_depth(views))
    clutter(stored - memory.stats().num_points, visible=0, memory=memory)
    times, carving = [], []
    for i in range(5):
        views = walk(9, phase=0.02 + 0.015 * i)
        depth, tokens = room_depth(views).float(), torch.randn(9, CHANNELS, *GRID)
        readout = memory.read(views, "nearest")
        started = time.perf_counter()
        memory.write(tokens, depth, views, range(100 + 9 * i, 109 + 9 * i), readout=readout)
        times.append(1e3 * (time.perf_counter() - started))
        carving.append(carve_ms(memory, views, depth, readout))
    return {
        "ms": statistics.median(times),
        "ms_min": min(times),
        "carving_ms": statistics.median(carving),
        "points": memory.stats().num_points,
    }


def carve_ms(memory: LatentMemory, views: Cameras, depth: Tensor, readout: Readout) -> float:
    """What judging old points by new views takes alone."""
    flat = torch.zeros_like(depth, dtype=torch.uint8)
    evidence = Evidence(depth, depth / 40, flat + 150, flat.bool(), observed=True)
    started = time.perf_counter()
    judge(memory._points, views, evidence, 2.0)
    return 1e3 * (time.perf_counter() - started)


def five_chunks(form: str) -> Report:
    """41 latent frames (five chunks of 33 pictures) of a walk through the room."""
    cfg = LatentMemoryConfig(token_format=form)  # type: ignore[arg-type]
    memory, everything = LatentMemory(CHANNELS, GRID, cfg=cfg), unfused()
    views = walk(41, turns=0.5)
    for first, last in ((0, 9), (9, 17), (17, 25), (25, 33), (33, 41)):
        some = views[first:last]
        depth, tokens = room_depth(some), field(some)
        memory.write(tokens, depth, some, range(first, last), observed=True)
        keep_all(everything, some, first)
    between = walk(40, turns=0.5, phase=0.006)
    truth = field(between)
    stats, shown = memory.stats(), {}
    for name, one in (("fused", memory), ("unfused", everything)):
        seen = one.read(between, "nearest")
        covered = (seen.coverage > 0)[:, None]
        error = ((seen.tokens - truth) * covered).norm() / (truth * covered).norm()
        shown[name] = {"coverage": float(covered.float().mean()), "token_error": float(error)}
    return {
        "mib": stats.num_bytes / 2**20,
        "points": stats.num_points,
        "bytes_per_point": stats.num_bytes / stats.num_points,
        "unfused_mib": everything.stats().num_bytes / 2**20,
        "coverage_points": 100 * (shown["fused"]["coverage"] - shown["unfused"]["coverage"]),
        "token_error_points": 100
        * (shown["fused"]["token_error"] - shown["unfused"]["token_error"]),
    } | shown


def ten_loops() -> Report:
    """The same loop of 18 views walked ten times, each lap as new frames."""
    memory, sizes = LatentMemory(4, GRID), []
    views = walk(18, turns=1.0)
    for lap in range(10):
        for first in range(0, 18, 9):
            some = views[first : first + 9]
            numbers = range(18 * lap + first, 18 * lap + first + 9)
            memory.write(field(some)[:, :4], room_depth(some), some, numbers, observed=True)
        sizes.append(memory.stats().num_points)
    return {"points": sizes, "ratio": sizes[-1] / sizes[0]}


def mini(runs: int) -> Report:
    """Four views of the small model's grid, beside the plain torch twin."""
    memory = LatentMemory(16, (16, 24))
    views = walk(12, turns=0.5, grid=(16, 24))
    memory.write(torch.randn(12, 16, 16, 24), room_depth(views), views, range(12), observed=True)
    four, points = views[:4], memory._points
    found = clocked(
        {
            "ms": lambda: memory.read(four, "nearest"),
            "ms_soft": lambda: memory.read(four, "soft"),
            "ms_fine": lambda: memory.read(four, "fine"),
            "ms_twin": lambda: seen_by_torch(points, four, "nearest"),
            "ms_soft_twin": lambda: seen_by_torch(points, four, "soft"),
            "ms_surface": lambda: see(points, four, "nearest", with_tokens=False),
        },
        3 * runs,
    )
    return found | {"points": len(points)}


def clutter(
    num: int, visible: int | None = None, memory: LatentMemory | None = None
) -> LatentMemory:
    """`num` points at random depths, seen from about where `around` looks from; those beyond the
    first `visible` lie far below everything.
    """
    cfg = LatentMemoryConfig(max_points=10**8)
    memory = memory or LatentMemory(CHANNELS, GRID, cfg=cfg)
    generator = torch.Generator().manual_seed(num)
    tokens = torch.randn(CELLS, CHANNELS, generator=generator).bfloat16()
    narrow = intrinsics_from_fov(0.6 * FOV_RAD, *GRID)[None]
    for first in range(0, num, CELLS):
        count = min(CELLS, num - first)
        eye = 0.2 * torch.rand(3, generator=generator)
        eye[1] += 40.0 if visible is not None and first >= visible else 0.0
        pose = look_at(eye, eye + torch.tensor([0, 0, 1.0]))[None]
        views = Cameras(narrow, pose, *GRID)
        depth = 1.5 + 5 * torch.rand(1, *GRID, generator=generator)
        cells = Cells(
            depth=depth,
            size=depth / narrow[0, 0],
            slant=torch.randint(0, 64, (1, *GRID), generator=generator, dtype=torch.uint8),
            quality=torch.randint(100, 140, (1, *GRID), generator=generator, dtype=torch.uint8),
            valid=depth > 0,
            views=views,
        )
        serial = memory._points.next_serial
        memory.apply(added(cells, torch.arange(count), serial, serial, tokens[:count]))
    return memory


def around(num: int) -> Cameras:
    """(num,) nearly the same view of the clutter."""
    poses = [
        look_at(torch.tensor([0.01 * i, 0, -0.3]), torch.tensor([0, 0, 4.0])) for i in range(num)
    ]
    intrinsics = intrinsics_from_fov(FOV_RAD, *GRID).expand(num, 4)
    return Cameras(intrinsics, torch.stack(poses), *GRID)


def walk(num: int, turns: float = 0.4, phase: float = 0.0, grid: tuple[int, int] = GRID) -> Cameras:
    """(num,) a camera that turns on a circle of half a metre within the room."""
    parts = []
    for i in range(num):
        angle = 2 * math.pi * (turns * i / num + phase)
        out = torch.tensor([math.sin(angle), 0.0, math.cos(angle)])
        pose = look_at(0.5 * out, 2.0 * out + torch.tensor([0, 0.15, 0]))
        parts.append(Cameras(intrinsics_from_fov(FOV_RAD, *grid)[None], pose[None], *grid))
    return cat_cameras(parts)


def room_depth(views: Cameras) -> Tensor:
    """(T, h, w) float64 z-depth of the room's walls."""
    eye, direction = rays(views)
    walls = torch.tensor(ROOM, dtype=torch.float64)
    return ((direction.sign() * walls - eye) / direction).nan_to_num(nan=torch.inf).amin(-1)


def field(views: Cameras) -> Tensor:
    """(T, C, h, w) tokens that are a smooth function of the place on the wall."""
    eye, direction = rays(views)
    place = eye + direction * room_depth(views)[..., None]
    waves = torch.randn(3, CHANNELS, generator=torch.Generator().manual_seed(0)).double()
    return (place @ waves).sin().movedim(-1, 1).float()


def rays(views: Cameras) -> tuple[Tensor, Tensor]:
    pose = views.world_from_camera
    direction = torch.einsum("tij,thwj->thwi", pose[:, :3, :3], views.rays())
    return pose[:, None, None, :3, 3], direction


def fill(memory: LatentMemory, views: Cameras, depth: Callable[[Cameras], Tensor]) -> None:
    for first in range(0, len(views), 9):
        some = views[first : first + 9]
        tokens = torch.randn(len(some), memory._channels, *GRID)
        numbers = range(first, first + len(some))
        memory.write(tokens, depth(some).float(), some, numbers, observed=True)


def unfused() -> LatentMemory:
    return LatentMemory(CHANNELS, GRID, cfg=LatentMemoryConfig(max_points=10**8))


def keep_all(memory: LatentMemory, views: Cameras, first: int) -> None:
    """Add every cell of these views, as a memory without fusion does."""
    twin = LatentMemory(CHANNELS, GRID)
    for i in range(len(views)):
        twin = LatentMemory(CHANNELS, GRID)
        some = views[i : i + 1]
        delta = twin.write(field(some), room_depth(some), some, [first + i], observed=True)
        serial = memory._points.next_serial
        shifted = {"ids": delta.ids + serial * CELLS, "serials": delta.serials + serial}
        memory.apply(type(delta)(**(vars(delta) | shifted)))


def clocked(calls: dict[str, Callable[[], object]], runs: int) -> Report:
    """Median milliseconds of each call, the second of two in a row, and their minima; interleaved
    after a warm-up.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for run in range(runs + 1):
        for name, call in calls.items():
            time.sleep(SETTLE_S)
            call()  # a processor that slept, and caches that others filled, are not what is timed
            started = time.perf_counter()
            call()
            if run:
                times[name].append(1e3 * (time.perf_counter() - started))
    found: Report = {name: statistics.median(values) for name, values in times.items()}
    return found | {"min": {name: min(values) for name, values in times.items()}}


def copy_bytes_per_s(num_bytes: int = 1 << 28) -> float:
    """Read plus written, of a copy larger than the caches."""
    source, target = (
        torch.ones(num_bytes, dtype=torch.uint8),
        torch.empty(num_bytes, dtype=torch.uint8),
    )
    times = []
    for _ in range(5):
        started = time.perf_counter()
        target.copy_(source)
        times.append(time.perf_counter() - started)
    return 2 * num_bytes / min(times)


def print_table(report: Report) -> None:
    print(
        f"copy {report['copy_gb_per_s']:.1f} GB/s, kernels ready after {report['warm_up_s']:.1f} s"
    )
    print(
        f"{'points':>8}{'ms':>9}{'painter':>9}{'speedup':>9}{'9 views':>9}{'/ calls':>9}{'bus':>6}"
    )
    for name, row in report["read"].items():
        print(
            f"{name:>8}{row['ms']:9.2f}{row['painter_ms']:9.1f}{row['speedup']:9.1f}"
            f"{row['ms_9_views']:9.2f}{row['nine_views_over_nine_calls']:9.2f}"
            f"{row['bandwidth_share']:6.2f}"
        )
    some = report["sparse"]
    print(f"1 % of {some['stored']:.0e} visible: {some['ms']:.2f} ms, {some['ratio']:.2f} x alone")
    for name, row in report["write"].items():
        print(f"write 9 frames into {name}: {row['ms']:.1f} ms; carving {row['carving_ms']:.1f} ms")
    for name, row in report["size"].items():
        print(
            f"5 chunks, {name}: {row['mib']:.2f} MiB in {row['points']} points (all cells "
            f"{row['unfused_mib']:.1f}); coverage {row['coverage_points']:+.2f} points, "
            f"token error {row['token_error_points']:+.2f} points"
        )
    print(f"10 loops: {report['loops']['ratio']:.3f} x the points of one")
    row = report["mini"]
    print(
        f"mini, 4 views: {row['ms']:.2f} ms, twin {row['ms_twin']:.2f}, soft {row['ms_soft']:.2f}, "
        f"fine {row['ms_fine']:.2f}"
    )
    print(f"bytes per point {report['bytes_per_point']:.1f}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.memory", description=__doc__)
    parser.add_argument("--json", type=Path, default=Path("out/memory.json"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--quick", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
