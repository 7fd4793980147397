"""Frames per second of the engine on this machine, by stage, for one session and for several at
once.

`python -m bench.step --json out/step.json`: sessions walk a held-out scene with the shipped
weights; medians over chunks after a warm-up. `bottleneck` names the stage that takes longest;
`floor_ms` is what the networks' multiplications alone would take at this machine's measured
bfloat16 matrix rate.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from worker.backbones import create_backbone
from worker.backbones.mini import MiniBackbone
from worker.engine import Engine, EngineConfig
from worker.eval.protocols import make_loop
from worker.geometry import Cameras
from worker.layers import num_parameters
from worker.pixels import to_uint8
from worker.scenes.scene import HELD_OUT_SEED
from worker.world import World

WARM_UP = 2  # chunks


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
            "bfloat16_gflops": round(matrix_rate() / 1e9),
        },
        "settings": describe(backbone, engine, args.chunk),
    }
    for batch in args.batches:
        report[f"batch_{batch}"] = measure(engine, batch, args.chunk, args.chunks)
    rate = report["machine"]["bfloat16_gflops"] * 1e9
    report["floor_ms_per_frame"] = 1e3 * flops_per_frame(engine, args.chunk) / rate
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(report, indent=1) + "\n")
    print_table(report, args.batches)


def describe(backbone: object, engine: Engine, chunk: int) -> dict[str, object]:
    assert isinstance(backbone, MiniBackbone)
    modules = (backbone.codec, backbone.denoiser, backbone.depth_head)
    return {
        "weights": backbone.weights,
        "frame": f"{engine.cfg.width} x {engine.cfg.height}",
        "parameters": {type(module).__name__: num_parameters(module) for module in modules},
        "denoising_steps": backbone.cfg.num_steps,
        "dtype": str(backbone.cfg.dtype).removeprefix("torch."),
        "frames_per_chunk": chunk,
    }


def measure(engine: Engine, batch: int, chunk: int, num_chunks: int) -> dict[str, object]:
    """Medians over chunks of `batch` sessions stepped together."""
    worlds, cameras = sessions(engine, batch, chunk * (WARM_UP + num_chunks) + 1)
    stages: dict[str, list[float]] = {}
    totals_s = []
    for number in range(WARM_UP + num_chunks):
        first = 1 + number * chunk
        started = time.perf_counter()
        increments = engine.step(worlds, [views[first : first + chunk] for views in cameras])
        spent_s = time.perf_counter() - started
        if number < WARM_UP:
            continue
        totals_s.append(spent_s)
        for stage, spent_ms in increments[0].timings_ms.items():
            stages.setdefault(stage, []).append(spent_ms)
    frames = batch * chunk
    medians = {stage: statistics.median(values) for stage, values in stages.items()}
    return {
        "frames_per_s": frames / statistics.median(totals_s),
        "ms_per_chunk": 1e3 * statistics.median(totals_s),
        "stages_ms": medians,
        "stages_ms_per_frame": {stage: value / frames for stage, value in medians.items()},
        "bottleneck": max(medians, key=lambda stage: medians[stage]),
        "points_per_session": worlds[0].memory.stats().num_points,
    }


def sessions(engine: Engine, batch: int, num_frames: int) -> tuple[list[World], list[Cameras]]:
    worlds, cameras = [], []
    for number in range(batch):
        loop = make_loop(HELD_OUT_SEED + number, "yaw", num_frames, engine)
        world = engine.open(number)
        engine.observe(world, to_uint8(loop.images[:1])[0], loop.cameras[:1])
        worlds.append(world)
        cameras.append(loop.cameras)
    return worlds, cameras


def flops_per_frame(engine: Engine, chunk: int) -> int:
    worlds, cameras = sessions(engine, 1, chunk + 1)
    with FlopCounterMode(display=False) as counter:
        engine.step(worlds, [cameras[0][1:]])
    return int(counter.get_total_flops()) // chunk


def matrix_rate(size: int = 2048) -> float:
    """Measured floating point operations per second of a bfloat16 matrix product."""
    a = torch.randn(size, size).bfloat16()
    times = []
    for _ in range(5):
        started = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - started)
    return 2 * size**3 / statistics.median(times)


def print_table(report: dict, batches: list[int]) -> None:
    stages = list(report[f"batch_{batches[0]}"]["stages_ms"])
    print(f"{'batch':>6}{'frames/s':>10}" + "".join(f"{stage:>10}" for stage in stages))
    for batch in batches:
        row = report[f"batch_{batch}"]
        cells = "".join(f"{row['stages_ms_per_frame'][stage]:10.2f}" for stage in stages)
        print(f"{batch:6}{row['frames_per_s']:10.1f}{cells}   (ms per frame)")
    print(f"bottleneck: {report[f'batch_{batches[0]}']['bottleneck']}; ", end="")
    print(f"arithmetic floor {report['floor_ms_per_frame']:.1f} ms per frame")
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
