"""How things move: one closed formula per primitive, so that any time can be rendered by itself.

At time t (in frames) with the wave's angle a = rate t + phase, a primitive is turned by
spin t + swing sin(a) about a vertical axis that lies `arm` away from its centre, and carried along
`slide` by a wave that swings between -1 and 1 at almost constant speed. That covers carts that
shuttle, balloons that bob, fans that spin, doors that swing and people that walk in circles.
Trade-off: no physics and no collisions; each mover gets a spot of its own.

Columns of a motion (9,): slide x, y, z (metres), arm x, z (metres, from the axis to the centre, at
rest), spin (radians per frame), swing (radians), rate (radians per frame), phase (radians).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from worker.scenes.scene import Scene

NUM_COLUMNS = 9
_FLAT = 0.96  # the nearer to 1, the sharper the turning points of a slide


@dataclass(frozen=True)
class Motion:
    slide: tuple[float, float, float] = (0.0, 0.0, 0.0)
    arm: tuple[float, float] = (0.0, 0.0)
    spin: float = 0.0
    swing: float = 0.0
    rate: float = 0.0
    phase: float = 0.0

    def row(self) -> tuple[float, ...]:
        return (*self.slide, *self.arm, self.spin, self.swing, self.rate, self.phase)


STILL = Motion()


def moving(scene: Scene) -> Tensor:
    """(s, p) bool: which primitives ever move."""
    return (scene.motion != 0).any(-1)


def placed(scene: Scene, times: Tensor) -> tuple[Tensor, Tensor]:
    """Centres (s, t, p, 3) and rotations (s, t, p) at times (t,) in frames."""
    m = scene.motion[:, None]  # s 1 p 9
    time = times.to(m)[:, None]
    angle = m[..., 7] * time + m[..., 8]
    turn = m[..., 5] * time + m[..., 6] * angle.sin()
    wave = torch.asin(_FLAT * angle.sin()) / math.asin(_FLAT)
    cos, sin = turn.cos() - 1, turn.sin()
    arm_x, arm_z = m[..., 3], m[..., 4]
    offset = torch.stack(
        [cos * arm_x + sin * arm_z, torch.zeros_like(turn), cos * arm_z - sin * arm_x], -1
    )
    centre = scene.centre[:, None] + offset + m[..., :3] * wave[..., None]
    return centre, scene.rotation[:, None] + turn


def swept(scene: Scene) -> Scene:
    """The same scene with a still box around all that each moving primitive ever fills."""
    mask = moving(scene)
    flat = scene.half[..., ::2].norm(dim=-1) + scene.motion[..., 3:5].norm(dim=-1)
    reach = scene.motion[..., :3].abs()
    spin = torch.stack([flat, scene.half[..., 1], flat], -1)
    axis = torch.zeros_like(scene.centre)
    axis[..., ::2] = scene.motion[..., 3:5]
    return replace(
        scene,
        kind=torch.where(mask, 0, scene.kind),
        centre=scene.centre - axis,
        half=torch.where(mask[..., None], spin + reach, scene.half),
        rotation=torch.where(mask, 0.0, scene.rotation),
        motion=torch.zeros_like(scene.motion),
    )
