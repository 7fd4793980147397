"""The revisit benchmark: does a corner look the same when the camera comes back?

`python -m worker.eval.revisit --scenes 8 --frames 32 --json out/revisit.json`: held-out scenes
(seeds >= 1,000,000), the five loop kinds in turn, protocols `observed`, `observed_pred`, `imagined`
(worker/eval/protocols.py). Every figure is a mean over scenes with its 95 % interval. "Covered"
always means that the latent memory shows a token there, so that all methods are scored on the same
pixels.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from worker.backbones import create_backbone
from worker.engine import Engine, EngineConfig
from worker.eval.metrics import absrel, mean_ci95, psnr, sharpness, ssim
from worker.eval.protocols import OBSERVE_EVERY, Loop, Walk, imagined, make_loop, observed
from worker.eval.sheet import write_sheet
from worker.scenes.paths import LOOP_KINDS
from worker.scenes.scene import HELD_OUT_SEED

METHODS = ("latent", "rgb", "null", "last-frame", "readout")
PROTOCOLS = ("observed", "observed_pred", "imagined")

Scores = dict[str, list[float]]  # metric path -> one value per scene


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    backbone = create_backbone("mini", "cpu", args.weights)
    engine = Engine(backbone, EngineConfig())
    scores: Scores = defaultdict(list)
    for number in tqdm(range(args.scenes), desc="scenes"):
        kind = LOOP_KINDS[number % len(LOOP_KINDS)]
        loop = make_loop(args.first_seed + number, kind, args.frames, engine)
        walks = dict(run_all(engine, loop, args.chunk))
        for path, value in score(engine, loop, walks):
            scores[path].append(value)
        if args.sheets:
            write_sheet(args.sheets / f"{loop.seed}_{kind}.png", loop, walks)
    report = nested(scores)
    report["settings"] = {
        "weights": backbone.weights,
        "scenes": args.scenes,
        "frames": args.frames,
        "first_seed": args.first_seed,
        "chunk": args.chunk,
        "threads": args.threads,
    }
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(report, indent=1) + "\n")
    print(table(report))


def run_all(engine: Engine, loop: Loop, chunk: int) -> Iterator[tuple[str, Walk]]:
    for method in METHODS:
        yield f"observed.{method}", observed(engine, loop, method, True, chunk)
        yield f"observed_pred.{method}", observed(engine, loop, method, False, chunk)
        if method != "readout":
            yield f"imagined.{method}", imagined(engine, loop, method, chunk)


def score(engine: Engine, loop: Loop, walks: dict[str, Walk]) -> Iterator[tuple[str, float]]:
    with torch.inference_mode():
        latents = engine.backbone.encode(loop.images)
        decoded = engine.backbone.decode(latents)
        depth, _ = engine.backbone.depth(latents, loop.cameras)
    yield "codec.psnr", float(psnr(decoded, loop.images).mean())
    yield "codec.ssim", float(ssim(decoded, loop.images).mean())
    yield "codec.sharpness", float(sharpness(decoded, loop.images).mean())
    yield "depth.absrel", float(absrel(depth, loop.cell_depth, loop.cell_valid).mean())
    ratio = torch.maximum(depth / loop.cell_depth, loop.cell_depth / depth)
    yield "depth.delta_1_25", float((ratio < 1.25)[loop.cell_valid].float().mean())
    for name, walk in walks.items():
        protocol = name.split(".")[0]
        covered = walks[f"{protocol}.latent"]
        for metric, value in score_walk(loop, walk, covered, protocol):
            yield f"{name}.{metric}", value


def score_walk(
    loop: Loop, walk: Walk, reference: Walk, protocol: str
) -> Iterator[tuple[str, float]]:
    """Metrics of the return leg; `reference` says which cells count as covered."""
    keep = scored(loop, protocol)
    rows = [walk.index.index(i) for i in keep]
    images, target = walk.images[rows], loop.images[keep]
    known = reference.readout.coverage[[reference.index.index(i) for i in keep]] > 0
    pixels = to_pixels(known, target)
    yield "psnr_gt", mean(psnr(images, target))
    yield "psnr_gt_covered", mean(psnr(images, target, pixels))
    yield "psnr_gt_uncovered", mean(psnr(images, target, ~pixels))
    yield "ssim_gt", mean(ssim(images, target))
    yield "sharpness", mean(sharpness(images, target))
    yield "coverage", float(walk.readout.coverage[rows].mean())
    valid = loop.cell_valid[keep] & (walk.depth[rows] > 0)
    yield "depth_absrel", mean(absrel(walk.depth[rows], loop.cell_depth[keep], valid))
    yield "s_per_frame", walk.s_per_frame
    yield "memory_bytes", float(walk.memory_bytes)
    if walk.first_visit:
        first = torch.stack([walk.first_visit[len(loop.images) - 1 - i] for i in keep])
        yield "psnr_first_visit", mean(psnr(images, first))


def scored(loop: Loop, protocol: str) -> list[int]:
    """Frames of the return leg whose pose was not observed; the turning pose follows itself and
    says nothing.
    """
    last = len(loop.images) - 1
    back = range(loop.num_out + 1, len(loop.images))
    if protocol == "imagined":
        return list(back)
    return [i for i in back if (last - i) % OBSERVE_EVERY]


def to_pixels(cells: Tensor, images: Tensor) -> Tensor:
    """(n, h, w) bool -> (n, H, W) bool."""
    return F.interpolate(cells[:, None].float(), size=images.shape[-2:])[:, 0] > 0.5


def mean(values: Tensor) -> float:
    """Over the pictures where the metric is defined (covered-only needs covered pixels)."""
    return float(values[values.isfinite()].mean())


def nested(scores: Scores) -> dict[str, object]:
    """Values by dotted path -> nested dictionaries that end in mean and ci95."""
    report: dict[str, object] = {}
    for path, values in scores.items():
        *parents, leaf = path.split(".")
        node: dict[str, object] = report
        for parent in parents:
            node = node.setdefault(parent, {})  # type: ignore[assignment]
        node[leaf] = mean_ci95(values)
    return report


def table(report: dict[str, object]) -> str:
    """The report as a person reads it."""
    columns = (
        "psnr_gt", "psnr_gt_covered", "psnr_gt_uncovered", "ssim_gt", "psnr_first_visit",
        "sharpness", "coverage", "depth_absrel", "s_per_frame", "memory_bytes",
    )  # fmt: skip
    lines = [f"{'':24}" + "".join(f"{name.replace('psnr_', ''):>14}" for name in columns)]
    for protocol in PROTOCOLS:
        for method, metrics in report[protocol].items():  # type: ignore[attr-defined]
            cells = [metrics.get(name, {}).get("mean") for name in columns]
            lines.append(
                f"{protocol + '.' + method:24}"
                + "".join(f"{'-' if c is None else format(c, '.3f'):>14}" for c in cells)
            )
    for name in ("codec", "depth"):
        parts = [f"{key} {value['mean']:.3f}" for key, value in report[name].items()]  # type: ignore[attr-defined]
        lines.append(f"{name}: " + ", ".join(parts))
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m worker.eval.revisit", description=__doc__)
    parser.add_argument("--scenes", type=int, default=8)
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--json", type=Path, default=Path("out/revisit.json"))
    parser.add_argument("--sheets", type=Path, help="folder for a contact sheet per scene")
    parser.add_argument("--first-seed", type=int, default=HELD_OUT_SEED)
    parser.add_argument("--chunk", type=int, default=4, help="frames generated at once")
    parser.add_argument("--weights", type=Path, help="folder of weights (default: those shipped)")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
