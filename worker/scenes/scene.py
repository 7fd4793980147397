"""A batch of procedural worlds as padded tensors, a deterministic function of one seed each.

A world is a box-shaped room (its six faces are surfaces 0 to 5: x low, x high, ceiling, floor, z
low, z high) that holds convex primitives (surface 6 + p): boxes turned about the vertical, spheres
and upright cylinders. Interior walls and steps are boxes too, so corridors, doorways and stairs
need nothing more; a courtyard's ceiling is the sky. Primitives may move by a closed formula of time
(`motion`). The floor lies at y = 0 and up is -y. Trade-off: convex primitives make exact depth and
fast rays; there are no triangle meshes.

Axis legend: s scenes, p primitives (padded with kind -1), f = 6 + p surfaces, l lights, g the
faces' light grids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from worker.scenes import room_light
from worker.scenes.draft import Draft
from worker.scenes.motion import NUM_COLUMNS
from worker.scenes.movers import add_movers
from worker.scenes.worlds import SHARES, draft_scene

HELD_OUT_SEED = 1_000_000  # seeds from here on are never trained on
NUM_ROOM_FACES = 6
BOX, SPHERE, CYLINDER, NOTHING = 0, 1, 2, -1


@dataclass(frozen=True)
class Scene:
    """S worlds on one device. Lengths in metres, float32 unless said otherwise."""

    seeds: Tensor  # (s,) int64
    kind: Tensor  # (s, p) int64: BOX, SPHERE, CYLINDER or NOTHING
    centre: Tensor  # (s, p, 3)
    half: Tensor  # (s, p, 3) half extents before rotation; radii in x and z if round
    rotation: Tensor  # (s, p) radians about the vertical, local x axis = (cos, 0, -sin)
    motion: Tensor  # (s, p, 9) see motion.Motion; zeros where still
    room_low: Tensor  # (s, 3)
    room_high: Tensor  # (s, 3)
    texture: Tensor  # (s, f) int64 index into the scene's atlas
    period: Tensor  # (s, f, 2) metres after which the texture repeats
    phase: Tensor  # (s, f, 2) shift of the texture in periods
    tint: Tensor  # (s, f, 3) factor on the texture's colour
    light: Tensor  # (s, l, 3) positions
    light_colour: Tensor  # (s, l, 3)
    ambient: Tensor  # (s, 3)
    sky: Tensor  # (s, 2, 3) colours at the horizon and the zenith; zeros under a ceiling
    room_light: Tensor  # (s, 6, g, g) share of light that reaches the room's faces, see room_light
    atlas: Tensor  # (s, textures, texels) int32, see textures.pack

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, item: slice | Sequence[int]) -> Scene:
        return Scene(*(getattr(self, field.name)[item] for field in fields(self)))

    def to(self, device: torch.device | str) -> Scene:
        return Scene(*(getattr(self, field.name).to(device) for field in fields(self)))


def sample_scenes(
    seeds: Sequence[int],
    device: torch.device | str = "cpu",
    dynamic: bool = False,
    worlds: Mapping[str, float] = SHARES,
) -> Scene:
    """The worlds of these seeds; each depends on its own seed alone, whatever its batch.

    `dynamic` adds moving things to the very same worlds (they come last among the primitives);
    `worlds` gives the shares of the kinds of world, see `worlds.WORLDS`.
    """
    if not len(seeds) or min(seeds) < 0:
        raise ValueError(f"need at least one seed and none below 0, got {list(seeds)}")
    drafts = [draft_scene(np.random.default_rng([seed, 7]), worlds) for seed in seeds]
    lights = [torch.from_numpy(room_light.bake(draft)) for draft in drafts]
    if dynamic:
        for seed, draft in zip(seeds, drafts, strict=True):
            add_movers(draft, np.random.default_rng([seed, 17]))
    num = max(len(draft.kind) for draft in drafts)
    columns = [_columns(draft, num) for draft in drafts]
    stacked = {name: torch.stack([c[name] for c in columns]) for name in columns[0]}
    scene = Scene(seeds=torch.tensor(list(seeds)), room_light=torch.stack(lights), **stacked)
    return scene.to(device)


def _columns(draft: Draft, num_primitives: int) -> dict[str, Tensor]:
    missing = num_primitives - len(draft.kind)

    def rows(values: object, fill: float) -> Tensor:
        array = np.asarray(values, dtype=np.float32)
        pad = np.full((missing, *array.shape[1:]), fill, dtype=np.float32)
        return torch.from_numpy(np.concatenate([array, pad]))

    return {
        "kind": rows(draft.kind, NOTHING).long(),
        "centre": rows(draft.centre, 0.0),
        "half": rows(draft.half, 0.01),
        "rotation": rows(draft.rotation, 0.0),
        "motion": rows(np.reshape(draft.motion, (-1, NUM_COLUMNS)), 0.0),
        "texture": rows(draft.texture, 0).long(),
        "period": rows(draft.period, 1.0),
        "phase": rows(draft.phase, 0.0),
        "tint": rows(draft.tint, 1.0),
        "room_low": torch.from_numpy(draft.room_low),
        "room_high": torch.from_numpy(draft.room_high),
        "light": torch.tensor(draft.light, dtype=torch.float32),
        "light_colour": torch.tensor(draft.light_colour, dtype=torch.float32),
        "ambient": torch.tensor(draft.ambient, dtype=torch.float32),
        "sky": torch.tensor(draft.sky, dtype=torch.float32),
        "atlas": torch.from_numpy(np.stack(draft.atlas)),
    }
