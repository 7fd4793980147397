"""Reads of large latent memories on a CUDA GPU: time, bandwidth, and how the public code's way
does.

`python -m bench.memory_gpu --json out/memory_gpu.json`: C = 48, 44 x 80 cells, all points in view.
Medians over replays of a captured CUDA graph (a read neither waits nor asks the host) and over
plain calls; `painter` sorts by depth and overwrites, as the public code does, with float32 tokens,
on the same points in the same run; `copy_gb_s` is what a device copy reaches. Bytes of a read are
those that it has to touch: every pass over the rows, the winners' tokens, the readout.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from worker.geometry import Cameras, intrinsics_from_fov, look_at
from worker.memory.base import Delta
from worker.memory.points import Points
from worker.projection import quality_code

CHANNELS, GRID = 48, (44, 80)
SCAN_BYTES = 3 * (2 + 4 + 1) + 2 * 1  # per row: cell, depth, slant in three passes, quality in two
BARS_MS = {"1e6.ms_9_views": 0.3, "1e7.ms_9_views": 1.5, "sessions.ms_9_views": 1.0}


def main() -> None:
    args = parse()
    if not torch.cuda.is_available():
        raise SystemExit("bench.memory_gpu needs a CUDA GPU; `python -m bench.memory` needs none")
    report: dict[str, object] = {
        "machine": {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__},
        "copy_gb_s": copy_rate() / 1e9,
    }
    for exponent in args.exponents:
        report[f"1e{exponent}"] = measure(scene(10**exponent, "cuda"))
    report["sessions"] = measure_sessions(32, 50_000)
    bars = {path: (value_at(report, path), bar) for path, bar in BARS_MS.items()}
    report["bars"] = {
        path: {"ms": value, "bar_ms": bar, "met": value <= bar}
        for path, (value, bar) in bars.items()
        if value is not None
    }
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


def scene(num_points: int, device: str, grid: tuple[int, int] = GRID, seed: int = 0) -> Points:
    """Full frames from eyes near the origin that look ahead at surfaces 2 to 6 m away."""
    num_cells = grid[0] * grid[1]
    generator = torch.Generator().manual_seed(seed)
    num_frames = -(-num_points // num_cells)
    ids = torch.arange(num_points)
    size = (num_points,)
    depth = 2 + 4 * torch.rand(size, generator=generator)
    quality = quality_code(4 + 16 * torch.rand(size, generator=generator))
    cameras = looking(num_frames, grid)
    delta = Delta(
        ids=ids,
        depth=depth,
        tokens=torch.randn(min(num_points, 1 << 16), CHANNELS, generator=generator).bfloat16()[
            ids % (1 << 16)
        ],
        quality=quality,
        slant=torch.randint(0, 32, size, generator=generator, dtype=torch.uint8),
        relief=torch.zeros(num_points, 0, dtype=torch.int8),
        removed=ids[:0],
        struck=ids[:0],
        struck_quality=quality[:0],
        serials=torch.arange(num_frames),
        source=torch.arange(num_frames, dtype=torch.int32),
        intrinsics=cameras.intrinsics,
        world_from_camera=cameras.world_from_camera,
    )
    points = Points(CHANNELS, grid, device)
    points.append(Delta(**{name: value.to(device) for name, value in vars(delta).items()}))
    return points


def looking(num: int, grid: tuple[int, int] = GRID, fov_deg: float = 80.0) -> Cameras:
    """(num,) cameras within 10 cm of the origin that look ahead, turned by up to 3 degrees."""
    steps = torch.arange(num, dtype=torch.float64)
    aside, up = 0.1 * torch.sin(2.4 * steps), 0.1 * torch.cos(3.7 * steps)
    eye = torch.stack([aside, up, 0 * steps], dim=-1)
    pose = look_at(eye, eye + torch.stack([0.5 * aside, 0.5 * up, 0 * steps + 1], dim=-1))
    intrinsics = intrinsics_from_fov(math.radians(fov_deg), *grid)
    return Cameras(intrinsics.expand(num, 4), pose, *grid)


def measure(points: Points) -> dict[str, float]:
    """Times of one and nine views, alone and against the painter."""
    from worker.splat import gpu as splat_gpu

    found: dict[str, float] = {}
    batch = splat_gpu.batch_of([points])
    for name, num in (("ms", 1), ("ms_9_views", 9)):
        cameras = looking(num).to("cuda")
        views = cameras.reshape(1, num)
        found[name] = replayed_ms(partial(splat_gpu.read, batch, views))
        found[f"plain_{name}"] = timed_ms(partial(splat_gpu.read, batch, views))
        winners = int((splat_gpu.read(batch, views).winner >= 0).sum())
        touched = num * len(points.rows) * SCAN_BYTES + winners * 2 * CHANNELS
        touched += num * GRID[0] * GRID[1] * (4 * CHANNELS + 28 + 16)
        found[f"gb_s_{num}_views"] = touched / found[name] / 1e6
    positions, tokens = points.patches().positions().float(), points["tokens"].float()
    one = looking(1).to("cuda")
    found["painter_ms"] = timed_ms(lambda: painter(positions, tokens, one))
    found["speedup"] = found["painter_ms"] / found["plain_ms"]
    found["bytes_per_point"] = points.num_bytes / len(points)
    return found


def measure_sessions(num_sessions: int, num_points: int) -> dict[str, float]:
    """Nine views of each of many sessions in one call."""
    from worker.splat import gpu as splat_gpu

    sessions = [scene(num_points, "cuda", seed=i) for i in range(num_sessions)]
    batch = splat_gpu.batch_of(sessions)
    views = looking(9 * num_sessions).to("cuda").reshape(num_sessions, 9)
    return {
        "ms_9_views": replayed_ms(lambda: splat_gpu.read(batch, views)),
        "plain_ms_9_views": timed_ms(lambda: splat_gpu.read(batch, views)),
        "with_table_ms_9_views": timed_ms(
            lambda: splat_gpu.read(splat_gpu.batch_of(sessions), views)
        ),
    }


def painter(positions: Tensor, tokens: Tensor, camera: Cameras) -> Tensor:
    """(h * w, C): all tokens in view, written from far to near."""
    matrix, (fx, fy, cx, cy) = camera.camera_from_world[0].float(), camera.intrinsics[0].float()
    local = positions @ matrix[:3, :3].T + matrix[:3, 3]
    z = local[:, 2]
    u, v = (local[:, 0] * fx / z + cx).floor().long(), (local[:, 1] * fy / z + cy).floor().long()
    h, w = camera.height, camera.width
    seen = (z > 0) & (u >= 0) & (u < w) & (v >= 0) & (v < h)
    order = z[seen].argsort(descending=True)
    image = torch.zeros(h * w, tokens.shape[1], device=tokens.device)
    image[(v[seen] * w + u[seen])[order]] = tokens[seen][order]
    return image


def replayed_ms(work: Callable[[], object], repeats: int = 50) -> float:
    """Median of a captured graph's replays."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = work()
    found = timed_ms(graph.replay, repeats)
    del kept
    return found


def timed_ms(work: Callable[[], object], repeats: int = 20) -> float:
    times: list[float] = []
    for _ in range(3):
        work()
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def copy_rate(num_bytes: int = 1 << 30) -> float:
    """Bytes per second read and written by a device copy."""
    source = torch.empty(num_bytes, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2e3 * num_bytes / timed_ms(lambda: target.copy_(source))


def value_at(report: dict[str, object], path: str) -> float | None:
    first, last = path.split(".")
    part = report.get(first)
    return float(part[last]) if isinstance(part, dict) else None


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.memory_gpu", description=__doc__)
    parser.add_argument("--exponents", type=int, nargs="+", default=[4, 5, 6, 7])
    parser.add_argument("--json", type=Path, default=Path("out/memory_gpu.json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
