"""A batch of procedural worlds as padded tensors, a deterministic function of one seed each.

A world is a box-shaped room (its six faces are surfaces 0 to 5: x low, x high, ceiling, floor, z
low, z high) that holds convex primitives (surface 6 + p): boxes turned about the vertical, spheres
and upright cylinders. Interior walls are boxes too, so corridors, corners and doorways need nothing
more. The floor lies at y = 0 and up is -y. Trade-off: convex primitives make exact depth and fast
rays; there are no triangle meshes.

Axis legend: s scenes, p primitives (padded with kind -1), f = 6 + p surfaces, l lights, g the
floor's light grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from worker.scenes import floor_light
from worker.scenes.layout import Draft, draft_scene

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
    room_low: Tensor  # (s, 3)
    room_high: Tensor  # (s, 3)
    texture: Tensor  # (s, f) int64 index into the scene's atlas
    period: Tensor  # (s, f, 2) metres after which the texture repeats
    phase: Tensor  # (s, f, 2) shift of the texture in periods
    tint: Tensor  # (s, f, 3) factor on the texture's colour
    light: Tensor  # (s, l, 3) positions
    light_colour: Tensor  # (s, l, 3)
    ambient: Tensor  # (s, 3)
    floor_light: Tensor  # (s, g, g) share of light that reaches the floor, [z, x] over the room
    atlas: Tensor  # (s, textures, texels) int32, see textures.pack

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, item: slice | Sequence[int]) -> Scene:
        return Scene(*(getattr(self, field.name)[item] for field in fields(self)))

    def to(self, device: torch.device | str) -> Scene:
        return Scene(*(getattr(self, field.name).to(device) for field in fields(self)))


def sample_scenes(seeds: Sequence[int], device: torch.device | str = "cpu") -> Scene:
    """The worlds of these seeds; each depends on its own seed alone, whatever its batch."""
    if not len(seeds) or min(seeds) < 0:
        raise ValueError(f"need at least one seed and none below 0, got {list(seeds)}")
    drafts = [draft_scene(np.random.default_rng([seed, 7])) for seed in seeds]
    num = max(len(draft.kind) for draft in drafts)
    columns = [_columns(draft, num) for draft in drafts]
    stacked = {name: torch.stack([c[name] for c in columns]) for name in columns[0]}
    return Scene(seeds=torch.tensor(list(seeds)), **stacked).to(device)


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
        "texture": rows(draft.texture, 0).long(),
        "period": rows(draft.period, 1.0),
        "phase": rows(draft.phase, 0.0),
        "tint": rows(draft.tint, 1.0),
        "room_low": torch.from_numpy(draft.room_low),
        "room_high": torch.from_numpy(draft.room_high),
        "light": torch.tensor(draft.light, dtype=torch.float32),
        "light_colour": torch.tensor(draft.light_colour, dtype=torch.float32),
        "ambient": torch.tensor(draft.ambient, dtype=torch.float32),
        "floor_light": torch.from_numpy(floor_light.bake(draft)),
        "atlas": torch.from_numpy(np.stack(draft.atlas)),
    }
