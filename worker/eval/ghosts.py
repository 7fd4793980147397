"""Do moving things leave ghosts? The dynamics filter on held-out worlds in which things move.

`python -m worker.eval.ghosts --scenes 10 --json out/ghosts.json`: the outward leg of a closed loop
is given as RGB-D observations (every third frame) while things move; the return leg is generated.
Three sessions see the same frames: `filter` (the motion head), `none` (nothing is kept out) and
`client` (a client that sends the exact mask). Reported for each, mean over scenes with its 95 %
interval:
- rate: share of the memory's points that were written from cells showing a moving thing;
- psnr_disoccluded: return leg against the same world without movers, on background that a mover
  hid from at least one observation;
- iou (filter only): masks of the observed views against the exact ones, all cells of a scene;
- kept (filter only): share of still cells that may enter the memory.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from worker.backbones import create_backbone
from worker.backbones.base import Backbone
from worker.dynamics import dynamic_cells
from worker.engine import Engine, EngineConfig
from worker.eval.metrics import mean_ci95, psnr
from worker.eval.protocols import OBSERVE_EVERY, Loop, generate
from worker.geometry import lift
from worker.pixels import to_uint8
from worker.scenes.paths import LOOP_KINDS, LoopKind, sample_cameras
from worker.scenes.render import render
from worker.scenes.scene import HELD_OUT_SEED, sample_scenes
from worker.world import World

MOVING_SHARE = 0.25  # of a cell's pixels, from which on it shows a moving thing
VARIANTS = ("filter", "none", "client")


@dataclass(frozen=True)
class LivelyLoop:
    """A closed loop through a world in which things move, and the same views without them."""

    loop: Loop  # images and depth as seen
    moving: Tensor  # (n, H, W) bool
    moving_cells: Tensor  # (n, h, w) bool
    still_images: Tensor  # (n, 3, H, W) of the static twin
    still_depth: Tensor  # (n, H, W)

    @property
    def observed(self) -> list[int]:
        return list(range(0, self.loop.num_out, OBSERVE_EVERY))


def make_lively_loop(seed: int, kind: LoopKind, num_frames: int, engine: Engine) -> LivelyLoop:
    height, width = engine.cfg.height, engine.cfg.width
    lively, still = sample_scenes([seed], dynamic=True), sample_scenes([seed])
    cameras = sample_cameras(lively, kind, num_frames, height, width, [seed])
    frames, twin = render(lively, cameras), render(still, cameras)
    views, depth = cameras[0], frames.depth[0]
    lifted = lift(depth, views, engine.grid)
    loop = Loop(seed, kind, frames.rgb[0], depth, lifted.depth, lifted.valid, views)
    share = F.interpolate(frames.moving[0][:, None].float(), size=engine.grid, mode="area")[:, 0]
    return LivelyLoop(loop, frames.moving[0], share >= MOVING_SHARE, twin.rgb[0], twin.depth[0])


def ghost_rate(world: World, moving_cells: Tensor) -> float:
    """Share of a latent memory's points that were written from moving cells (t, h, w) of its first
    t sources.
    """
    state = world.memory.state()
    source, cell = state["source"].long(), state["cell"].long()
    if not len(source):
        return 0.0
    observed = source < len(moving_cells)  # later sources are generated
    ghost = moving_cells.flatten(1)[source.clamp(max=len(moving_cells) - 1), cell] & observed
    return float(ghost.double().mean())


def disoccluded(lively: LivelyLoop, frame: int) -> Tensor:
    """(H, W) bool: background of a frame that a mover hid from one of the observed views."""
    cameras, depth = lively.loop.cameras, lively.still_depth[frame]
    points = cameras[frame].rays() * depth[..., None]
    hidden = torch.zeros_like(depth, dtype=torch.bool)
    height, width = depth.shape
    for view in lively.observed:
        there = cameras[view].camera_from_world @ cameras[frame].world_from_camera
        local = points @ there[:3, :3].T + there[:3, 3]
        z = local[..., 2].clamp(min=1e-3)
        fx, fy, cx, cy = cameras[view].intrinsics
        u, v = (fx * local[..., 0] / z + cx).floor(), (fy * local[..., 1] / z + cy).floor()
        inside = (local[..., 2] > 0.05) & (u >= 0) & (u < width) & (v >= 0) & (v < height)
        u, v = u.long().clamp(0, width - 1), v.long().clamp(0, height - 1)
        hidden |= inside & lively.moving[view, v, u]
    return hidden & (depth > 0)


def run(
    engine: Engine, lively: LivelyLoop, variant: str, chunk: int
) -> Iterator[tuple[str, float]]:
    world, loop = engine.open(lively.loop.seed), lively.loop
    said: list[Tensor] = []
    for i in lively.observed:
        image = to_uint8(loop.images[i : i + 1])[0]
        if variant == "filter":
            said.append(masked(engine, world, loop, i))
        mask = lively.moving[i] if variant == "client" else None
        engine.observe(world, image, loop.cameras[i : i + 1], loop.depth[i], mask)
    truth = lively.moving_cells[lively.observed]
    yield "rate", ghost_rate(world, truth)
    if variant == "filter":
        masks = torch.cat(said)
        if truth.any():
            yield "iou", float((masks & truth).sum() / (masks | truth).sum())
        yield "kept", float((~masks)[~truth].float().mean())
    back = list(range(loop.num_out, len(loop.images)))
    walk = generate(engine, world, loop, back, chunk)
    where = torch.stack([disoccluded(lively, i) for i in back])
    values = psnr(walk.images, lively.still_images[back], where)
    if values.isfinite().any():
        yield "psnr_disoccluded", float(values[values.isfinite()].mean())


@torch.inference_mode()
def masked(engine: Engine, world: World, loop: Loop, frame: int) -> Tensor:
    """(1, h, w) what the engine is about to keep out, found the way it does."""
    view = loop.cameras[frame : frame + 1]
    latents = engine.backbone.encode(loop.images[frame : frame + 1]).bfloat16()
    depth = loop.depth[frame : frame + 1]
    return dynamic_cells(engine.backbone, world, latents, depth, view, world.memory.read(view))


class Blind:
    """A backbone that never sees motion, else the same."""

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone

    def __getattr__(self, name: str) -> object:
        return getattr(self._backbone, name)

    def motion(self, evidence: Tensor) -> Tensor:
        return torch.zeros_like(evidence[:, 0])


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    backbone = create_backbone("mini", "cpu", args.weights)
    cfg = EngineConfig(args.height, args.width)
    seeing, blind = Engine(backbone, cfg), Engine(Blind(backbone), cfg)  # type: ignore[arg-type]
    scores: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in VARIANTS}
    for number in tqdm(range(args.scenes), desc="scenes"):
        kind = LOOP_KINDS[number % len(LOOP_KINDS)]
        lively = make_lively_loop(args.first_seed + number, kind, args.frames, seeing)
        for variant in VARIANTS:
            engine = seeing if variant == "filter" else blind
            for name, value in run(engine, lively, variant, args.chunk):
                scores[variant][name].append(value)
    report: dict[str, object] = {
        variant: {name: mean_ci95(values) for name, values in figures.items()}
        for variant, figures in scores.items()
    }
    report["settings"] = {"weights": backbone.weights, **vars(args), "json": str(args.json)}
    report["settings"] = {k: str(v) for k, v in report["settings"].items()}  # type: ignore[attr-defined]
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m worker.eval.ghosts", description=__doc__)
    parser.add_argument("--scenes", type=int, default=10)
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--height", type=int, default=EngineConfig.height)
    parser.add_argument("--width", type=int, default=EngineConfig.width)
    parser.add_argument("--json", type=Path, default=Path("out/ghosts.json"))
    parser.add_argument("--first-seed", type=int, default=HELD_OUT_SEED)
    parser.add_argument("--chunk", type=int, default=4, help="frames generated at once")
    parser.add_argument("--weights", type=Path, help="folder of weights (default: those shipped)")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
