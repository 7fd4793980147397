"""Do moving things leave ghosts? The dynamics filter on worlds in which things move.

The outward leg of a closed loop is given as RGB-D observations (every third frame) while things
move; the return leg is generated. Three sessions see the same frames: `filter` (the motion head, if
the weights have one), `none` (nothing is kept out) and `client` (a client that sends the exact
mask, so what a perfect filter would bring). Reported for each:
- rate: share of the memory's points that were written from cells showing a moving thing;
- psnr_disoccluded: return leg against the same world without movers, on background that a mover
  hid from at least one observation;
- iou (filter only): masks of the observed views, as they are once later ones have told, against the
  exact ones, all cells of a scene (`cells_both` / `cells_either`, of all scenes: their ratio is
  that of all cells together);
- kept (filter only): share of still cells that may be in the memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from worker.backbones.base import Backbone
from worker.dynamics import SURE
from worker.engine import Engine
from worker.eval.metrics import psnr
from worker.eval.protocols import OBSERVE_EVERY, Loop, generate
from worker.geometry import Cameras, lift
from worker.pixels import to_uint8
from worker.scenes.motion import moving
from worker.scenes.paths import LoopKind, sample_cameras
from worker.scenes.render import render
from worker.scenes.scene import NOTHING, Scene, sample_scenes
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
    lively = sample_scenes([seed], dynamic=True)
    cameras = sample_cameras(lively, kind, num_frames, height, width, [seed])
    frames, twin = render(lively, cameras), render(without_movers(lively), cameras)
    views, depth = cameras[0], frames.depth[0]
    lifted = lift(depth, views, engine.grid)
    loop = Loop(seed, kind, frames.rgb[0], depth, lifted.depth, lifted.valid, views)
    share = F.interpolate(frames.moving[0][:, None].float(), size=engine.grid, mode="area")[:, 0]
    return LivelyLoop(loop, frames.moving[0], share >= MOVING_SHARE, twin.rgb[0], twin.depth[0])


def without_movers(scene: Scene) -> Scene:
    """The static twin; posts that things turn upon stay, as they are seen and do not move."""
    return replace(scene, kind=torch.where(moving(scene), NOTHING, scene.kind))


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
    heard = Heard(engine.backbone)
    engine = Engine(heard, engine.cfg)  # type: ignore[arg-type]
    world, loop = engine.open(lively.loop.seed), lively.loop
    truth = lively.moving_cells[lively.observed]
    masks = torch.zeros_like(truth)
    for i in lively.observed:
        image = to_uint8(loop.images[i : i + 1])[0]
        mask = lively.moving[i] if variant == "client" else None
        sources = [*(sight.source for sight in world.sights), world.next_source]
        engine.observe(world, image, loop.cameras[i : i + 1], loop.depth[i], mask)
        if heard.said is not None:
            masks[sources[-len(heard.said) :]] |= heard.said >= SURE
    yield "rate", ghost_rate(world, truth)
    if variant == "filter":
        both, either = (masks & truth).sum(), (masks | truth).sum()
        yield from (("cells_both", float(both)), ("cells_either", float(either)))
        if truth.any():
            yield "iou", float(both / either)
        yield "kept", float((~masks)[~truth].float().mean())
    back = list(range(loop.num_out, len(loop.images)))
    walk = generate(engine, world, loop, back, chunk)
    where = torch.stack([disoccluded(lively, i) for i in back])
    values = psnr(walk.images, lively.still_images[back], where)
    if values.isfinite().any():
        yield "psnr_disoccluded", float(values[values.isfinite()].mean())


class Blind:
    """A backbone that never sees motion, else the same."""

    sees_motion = False

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone

    def __getattr__(self, name: str) -> object:
        return getattr(self._backbone, name)


class Heard:
    """A backbone whose latest word on motion is kept, else the same."""

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        self.said: Tensor | None = None  # (n, h, w) probability

    def __getattr__(self, name: str) -> object:
        return getattr(self._backbone, name)

    def motion(self, pictures: Tensor, depth: Tensor, cameras: Cameras) -> Tensor:
        self.said = self._backbone.motion(pictures, depth, cameras)
        return self.said


def score_ghosts(engine: Engine, lively: LivelyLoop, chunk: int) -> Iterator[tuple[str, float]]:
    """Every figure of every variant, by its path in the report; no `filter` without its weights."""
    blind = Engine(Blind(engine.backbone), engine.cfg)  # type: ignore[arg-type]
    for variant in VARIANTS if engine.backbone.sees_motion else VARIANTS[1:]:
        chosen = engine if variant == "filter" else blind
        for name, value in run(chosen, lively, variant, chunk):
            yield f"dynamics.{variant}.{name}", value
