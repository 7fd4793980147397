"""The colour of surface points: mip-mapped texture, two soft lamps, light lost in corners.

Everything depends on the point and its normal only, never on the viewer (but for the mip level), so
that a point keeps its colour when the camera moves: what a world model has to learn. Points come as
flat lists, whatever view or scene.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.scenes.scene import CYLINDER, NUM_ROOM_FACES, Scene
from worker.scenes.textures import LEVEL_START, NUM_LEVELS, SIZE
from worker.scenes.trace import CURVED

ROOM = 4  # kind of the six room faces in the shading table
BACKGROUND = 0.05


@dataclass(frozen=True)
class Hits:
    """k surface points."""

    key: Tensor  # (k,) int64 surface * 4 + axis
    scene: Tensor  # (k,) int64
    position: tuple[Tensor, Tensor, Tensor]  # x, y, z of the world, metres
    direction: tuple[Tensor, Tensor, Tensor]  # of the ray, not normalised, world frame
    footprint: Tensor  # (k,) metres one pixel covers across the ray


@dataclass(frozen=True)
class Shader:
    """Scene values in the layout that shading gathers from."""

    table: Tensor  # (columns, s * f)
    room: Tensor  # (columns, s)
    atlas: Tensor  # (s * textures * texels,) int32
    floor_light: Tensor  # (s * g * g,)
    num_surfaces: int
    num_textures: int
    grid: int

    def shade(self, hits: Hits) -> Tensor:
        """(3, k) float32 display colours in [0, 1]."""
        rows = hits.scene * self.num_surfaces + (hits.key >> 2)
        surface = self.table.index_select(1, rows)
        room = self.room.index_select(1, hits.scene)
        axis = hits.key & 3
        local = _local(surface, hits.position)
        normal, uv = _normal_and_uv(surface, local, axis)
        cosine = _cosine(normal, hits.direction)
        albedo = self._texture(hits.scene, surface, uv, hits.footprint, cosine)
        open_air = _corner_light(room, hits.position, normal)
        on_floor = (hits.key >> 2) == 3
        light = self._floor(hits, room, on_floor)
        return _lit(albedo * surface[15:18], normal, hits.position, room, open_air * light)

    def _texture(
        self,
        scene: Tensor,
        surface: Tensor,
        uv: tuple[Tensor, Tensor],
        footprint: Tensor,
        cosine: Tensor,
    ) -> Tensor:
        texel = footprint * (SIZE * cosine.rsqrt()) / surface[11]
        lod = texel.clamp_(min=1.0).log2_().clamp_(max=NUM_LEVELS - 1.001)
        level = lod.long()
        base = (scene * self.num_textures + surface[10].long()) * (LEVEL_START[-1] + 1)
        fine = self._bilinear(base, level, uv)
        coarse = self._bilinear(base, level + 1, uv)
        return torch.lerp(fine, coarse, lod - level)

    def _bilinear(self, base: Tensor, level: Tensor, uv: tuple[Tensor, Tensor]) -> Tensor:
        """(3, k) in [0, 255] of mip `level`, repeating."""
        shift = 7 - level
        size = 1 << shift
        base = base + torch.tensor(LEVEL_START, device=base.device)[level]
        x, y = uv[0] * size - 0.5, uv[1] * size - 0.5
        x0, y0 = x.floor(), y.floor()
        fx, fy = x - x0, y - y0
        mask = size - 1
        left, top = x0.long(), y0.long()
        right, bottom = (left + 1) & mask, base + (((top + 1) & mask) << shift)
        left, top = left & mask, base + ((top & mask) << shift)
        a, b = self._texel(top + left), self._texel(top + right)
        c, d = self._texel(bottom + left), self._texel(bottom + right)
        return torch.lerp(torch.lerp(a, b, fx), torch.lerp(c, d, fx), fy)

    def _texel(self, index: Tensor) -> Tensor:
        packed = self.atlas[index]
        return torch.stack([packed & 255, (packed >> 8) & 255, (packed >> 16) & 255]).float()

    def _floor(self, hits: Hits, room: Tensor, on_floor: Tensor) -> Tensor:
        """(k,) the baked light, 1 off the floor."""
        x = (hits.position[0] - room[0]) / (room[3] - room[0]) * self.grid - 0.5
        z = (hits.position[2] - room[2]) / (room[5] - room[2]) * self.grid - 0.5
        x, z = x.clamp_(0, self.grid - 1.001), z.clamp_(0, self.grid - 1.001)
        x0, z0 = x.long(), z.long()
        base = (hits.scene * self.grid + z0) * self.grid + x0
        fx, fz = x - x0, z - z0
        near = torch.lerp(self.floor_light[base], self.floor_light[base + 1], fx)
        base = base + self.grid
        far = torch.lerp(self.floor_light[base], self.floor_light[base + 1], fx)
        return torch.where(on_floor, torch.lerp(near, far, fz), 1.0)


def make_shader(scene: Scene) -> Shader:
    s, f = scene.texture.shape
    middle = 0.5 * (scene.room_low + scene.room_high)[:, None].expand(s, NUM_ROOM_FACES, 3)
    half = 0.5 * (scene.room_high - scene.room_low)[:, None].expand(s, NUM_ROOM_FACES, 3)
    zero = torch.zeros(s, NUM_ROOM_FACES, device=scene.centre.device)
    kind = torch.cat([zero + ROOM, scene.kind.float()], 1)
    rotation = torch.cat([zero, scene.rotation], 1)
    columns = [kind, *torch.cat([middle, scene.centre], 1).unbind(-1)]
    columns += [*torch.cat([half, scene.half], 1).unbind(-1), rotation.cos(), rotation.sin()]
    columns += [torch.where(kind == ROOM, -1.0, 1.0), scene.texture.float()]
    columns += [*scene.period.unbind(-1), *scene.phase.unbind(-1), *scene.tint.unbind(-1)]
    room = [scene.room_low, scene.room_high, scene.light.flatten(1), scene.light_colour.flatten(1)]
    return Shader(
        table=torch.stack(columns).flatten(1).contiguous(),
        room=torch.cat([*room, scene.ambient], 1).T.contiguous(),
        atlas=scene.atlas.flatten(),
        floor_light=torch.nn.functional.pad(scene.floor_light.flatten(), (0, 1)),
        num_surfaces=f,
        num_textures=scene.atlas.shape[1],
        grid=scene.floor_light.shape[-1],
    )


Vector = tuple[Tensor, Tensor, Tensor]


def _local(surface: Tensor, position: Vector) -> Vector:
    x, y, z = (position[k] - surface[1 + k] for k in range(3))
    cos, sin = surface[7], surface[8]
    return cos * x - sin * z, y, sin * x + cos * z


def _normal_and_uv(
    surface: Tensor, local: Vector, axis: Tensor
) -> tuple[Vector, tuple[Tensor, Tensor]]:
    """World normal towards the viewer's side, and texture coordinates in periods."""
    x, y, z = local
    outward = surface[9]
    on_x, on_y, on_z, curved = axis == 0, axis == 1, axis == 2, axis == CURVED
    nx = torch.where(on_x, x.sign() * outward, 0.0)
    ny = torch.where(on_y, y.sign() * outward, 0.0)
    nz = torch.where(on_z, z.sign() * outward, 0.0)
    u = torch.where(on_x, z, x) / surface[11]
    v = torch.where(on_y, z, y) / surface[12]
    where = curved.nonzero()[:, 0]
    if len(where):
        cx, cy, cz, picked = x[where], y[where], z[where], surface[:, where]
        radius = picked[4]
        upright = picked[0] == CYLINDER
        nx[where], nz[where] = cx / radius, cz / radius
        ny[where] = torch.where(upright, 0.0, cy / radius)
        turns = torch.round(2 * math.pi * radius / picked[11]).clamp_(min=1.0)
        u[where] = torch.atan2(cz, cx) / (2 * math.pi) * turns
        arc = torch.asin((cy / radius).clamp(-1, 1)) * radius
        v[where] = torch.where(upright, cy, arc) / picked[12]
    cos, sin = surface[7], surface[8]
    normal = (cos * nx + sin * nz, ny, cos * nz - sin * nx)
    return normal, (u + surface[13], v + surface[14])


def _cosine(normal: Vector, direction: Vector) -> Tensor:
    dot = sum(n * d for n, d in zip(normal, direction, strict=True))
    length = sum(d * d for d in direction)
    assert isinstance(dot, Tensor) and isinstance(length, Tensor)
    return (dot.abs() * length.rsqrt()).clamp_(0.05, 1.0)


def _corner_light(room: Tensor, position: Vector, normal: Vector) -> Tensor:
    """Ambient light left near the room's faces; a face does not darken itself."""
    total = torch.ones_like(position[0])
    for k in range(3):
        gap = torch.minimum(position[k] - room[k], room[3 + k] - position[k]).clamp_(min=0.0)
        dark = torch.exp(gap * -2.8) * (1.0 - normal[k].abs())
        total = total * (1.0 - 0.38 * dark)
    return total


def _lit(
    albedo: Tensor, normal: Vector, position: Vector, room: Tensor, open_air: Tensor
) -> Tensor:
    """(3, k) display colour of albedo (3, k) in [0, 255]."""
    sky = 0.85 - 0.15 * normal[1]  # a normal that points up (-y) sees more light
    light = room[18:21] * (sky * open_air)
    for lamp in range(2):
        x, y, z = (room[6 + 3 * lamp + k] - position[k] for k in range(3))
        square = x * x + y * y + z * z
        facing = (x * normal[0] + y * normal[1] + z * normal[2]) * (square + 0.01).rsqrt()
        soft = (0.75 * facing + 0.25).clamp_(min=0.0) * open_air / (1.0 + 0.05 * square)
        light = light + room[12 + 3 * lamp : 15 + 3 * lamp] * soft
    linear = (albedo * (1 / 255)).square() * light
    return (linear * (1.12 / (1.0 + 0.16 * linear))).clamp_(0.0, 1.0).sqrt()
