"""Frames per second of the engine on this machine, by stage, for one session and for several at
once.

`python -m bench.step --json out/step.json`: sessions walk a held-out scene with the shipped
weights; medians over chunks after a warm-up, of the way out (`imagined`) and of the way back
(`remembered`). `bottleneck` names the stage that takes longest; `floor_ms_per_frame` is what the
networks' multiplications alone would take at this machine's measured matrix rate, in the number
format that they run in (worker/precision.py).
`observations`: what one takes, with depth and without, once there are as many as are looked at
together.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from worker.backbones import create_backbone
from worker.backbones.mini import MiniBackbone
from worker.engine import Engine, EngineConfig
from worker.eval.protocols import make_loop
from worker.geometry import Cameras
from worker.layers import num_parameters
from worker.pixels import to_uint8
from worker.precision import fast_dtype
from worker.scenes.scene import HELD_OUT_SEED
from worker.world import WINDOW, World

WARM_UP = 2  # chunks
WAYS = ("imagined", "remembered")
OBSERVATIONS = {"with depth": True, "without depth": False}
EVERY = 3  # frames, between two observations


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    backbone = create_backbone("mini")
    engine = Engine(backbone, EngineConfig())
    report = {
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "threads": args.threads,
            "torch": torch.__version__,
            "gflops": round(matrix_rate(fast_dtype("cpu")) / 1e9),
        },
        "settings": describe(backbone, engine, args.chunk),
    }
    for batch in args.batches:
        report[f"batch_{batch}"] = measure(engine, batch, args.chunk, args.chunks)
    report["observations"] = {
        name: observing(engine, has_depth) for name, has_depth in OBSERVATIONS.items()
    }
    rate = report["machine"]["gflops"] * 1e9
    flops = flops_per_frame(engine, args.chunk)
    report["floor_ms_per_frame"] = {way: 1e3 * value / rate for way, value in flops.items()}
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(report, indent=1) + "\n")
    print_table(report, args.batches)


def describe(backbone: object, engine: Engine, chunk: int) -> dict[str, object]:
    assert isinstance(backbone, MiniBackbone)
    modules = [backbone.codec, backbone.denoiser, backbone.depth_head]
    modules += [one for one in (backbone.motion_head, backbone.refiner) if one is not None]
    return {
        "weights": backbone.weights,
        "frame": f"{engine.cfg.width} x {engine.cfg.height}",
        "parameters": {type(module).__name__: num_parameters(module) for module in modules},
        "denoising_steps": backbone.cfg.num_steps,
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "frames_per_chunk": chunk,
    }


def measure(engine: Engine, batch: int, chunk: int, num_chunks: int) -> dict[str, object]:
    """Medians over the chunks of the way out, most of which nobody has seen (`imagined`), and of
    the way back, which is remembered; `batch` sessions are stepped together.
    """
    half = WARM_UP + num_chunks
    worlds, cameras = sessions(engine, batch, 2 * chunk * half + 1)
    spent: list[dict[str, float]] = []
    for number in range(2 * half):
        first = 1 + number * chunk
        started = time.perf_counter()
        increments = engine.step(worlds, [views[first : first + chunk] for views in cameras])
        spent_ms = 1e3 * (time.perf_counter() - started)
        spent.append({"all": spent_ms, **increments[0].timings_ms})
    ways = {"imagined": spent[WARM_UP:half], "remembered": spent[half + WARM_UP :]}
    report: dict[str, object] = {"points_per_session": worlds[0].memory.stats().num_points}
    return report | {way: summed_up(chunks, batch * chunk) for way, chunks in ways.items()}


def summed_up(chunks: list[dict[str, float]], frames: int) -> dict[str, object]:
    """Of chunks with so many frames."""
    medians = {name: statistics.median(one[name] for one in chunks) for name in chunks[0]}
    total_ms = medians.pop("all")
    return {
        "frames_per_s": 1e3 * frames / total_ms,
        "ms_per_chunk": total_ms,
        "stages_ms_per_frame": {stage: value / frames for stage, value in medians.items()},
        "bottleneck": max(medians, key=lambda stage: medians[stage]),
    }


def observing(engine: Engine, has_depth: bool) -> dict[str, object]:
    """Medians over the observations of a walk, of which WINDOW and more are behind it."""
    loop, world = make_loop(HELD_OUT_SEED, "strafe", (WINDOW + 10) * EVERY, engine), engine.open(0)
    spent: list[dict[str, float]] = []
    for i in range(0, len(loop.images), EVERY):
        image, depth = to_uint8(loop.images[i : i + 1])[0], loop.depth[i] if has_depth else None
        started = time.perf_counter()
        increment = engine.observe(world, image, loop.cameras[i : i + 1], depth)
        spent_ms = 1e3 * (time.perf_counter() - started)
        spent.append({"ms": spent_ms, **increment.timings_ms})
    return {name: statistics.median(one[name] for one in spent[WINDOW:]) for name in spent[-1]}


def sessions(engine: Engine, batch: int, num_frames: int) -> tuple[list[World], list[Cameras]]:
    worlds, cameras = [], []
    for number in range(batch):
        loop = make_loop(HELD_OUT_SEED + number, "yaw", num_frames, engine)
        world = engine.open(number)
        engine.observe(world, to_uint8(loop.images[:1])[0], loop.cameras[:1])
        worlds.append(world)
        cameras.append(loop.cameras)
    return worlds, cameras


def flops_per_frame(engine: Engine, chunk: int) -> dict[str, float]:
    """Of a chunk that is imagined, and of the same one, remembered."""
    worlds, cameras = sessions(engine, 1, 2 * chunk + 1)
    found = {}
    for way in WAYS:
        with FlopCounterMode(display=False) as counter:
            engine.step(worlds, [cameras[0][1 : chunk + 1]])
        found[way] = counter.get_total_flops() / chunk
    return found


def matrix_rate(dtype: torch.dtype, size: int = 2048) -> float:
    """Measured floating point operations per second of a matrix product."""
    a = torch.randn(size, size).to(dtype)
    times = []
    for _ in range(5):
        started = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - started)
    return 2 * size**3 / statistics.median(times)


def print_table(report: dict[str, Any], batches: list[int]) -> None:
    stages = list(report[f"batch_{batches[0]}"][WAYS[0]]["stages_ms_per_frame"])
    words = "".join(f"{word:>10}" for word in ("frames/s", *stages))
    print(f"{'':12}{'sessions':>10}{words}   (ms per frame)")
    for way, batch in itertools.product(WAYS, batches):
        row = report[f"batch_{batch}"][way]
        cells = "".join(f"{row['stages_ms_per_frame'][stage]:10.2f}" for stage in stages)
        print(f"{way:12}{batch:10}{row['frames_per_s']:10.1f}{cells}")
    for name, stages_ms in report["observations"].items():
        times = ", ".join(f"{stage} {value:.1f}" for stage, value in stages_ms.items())
        print(f"an observation {name}: {times}   (ms)")
    floors = (f"{way} {value:.1f}" for way, value in report["floor_ms_per_frame"].items())
    print(f"arithmetic floor, ms per frame: {', '.join(floors)}")
    print(json.dumps(report["settings"]))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.step", description=__doc__)
    parser.add_argument("--json", type=Path, default=Path("out/step.json"))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--chunk", type=int, default=4, help="frames per chunk")
    parser.add_argument("--chunks", type=int, default=12, help="chunks measured")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
