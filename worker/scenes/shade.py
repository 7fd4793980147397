"""The colour of surface points: mip-mapped texture, two soft lamps, light lost in corners, sky.

Everything depends on the point and its normal only, never on the viewer (but for the mip level), so
that a point keeps its colour when the camera moves: what a world model has to learn. Points come as
flat lists, whatever view or scene.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.scenes.materials import ROLES
from worker.scenes.scene import CYLINDER, NUM_ROOM_FACES, Scene
from worker.scenes.textures import LEVEL_START, NUM_LEVELS, SIZE
from worker.scenes.trace import CURVED, places

ROOM = 4  # kind of the six room faces in the shading table
CEILING = 2
SKY_TEXTURE = list(ROLES).index("sky")
BACKGROUND = 0.05


@dataclass(frozen=True)
class Hits:
    """k surface points."""

    key: Tensor  # (k,) int64 surface * 4 + axis
    scene: Tensor  # (k,) int64
    moment: Tensor  # (k,) int64 see Views.moment
    position: tuple[Tensor, Tensor, Tensor]  # x, y, z of the world, metres
    direction: tuple[Tensor, Tensor, Tensor]  # of the ray, not normalised, world frame
    footprint: Tensor  # (k,) metres one pixel covers across the ray


@dataclass(frozen=True)
class Shader:
    """Scene values in the layout that shading gathers from."""

    table: Tensor  # (columns, moments * f)
    room: Tensor  # (columns, s)
    atlas: Tensor  # (s * textures * texels,) int32
    room_light: Tensor  # (s * 6 * g * g,)
    num_surfaces: int
    num_textures: int
    grid: int
    has_sky: bool

    def shade(self, hits: Hits) -> Tensor:
        """(3, k) float32 display colours in [0, 1]."""
        face = hits.key >> 2
        rows = hits.moment * self.num_surfaces + face
        surface = self.table.index_select(1, rows)
        room = self.room.index_select(1, hits.scene)
        axis = hits.key & 3
        local = _local(surface, hits.position)
        normal, uv = _normal_and_uv(surface, local, axis)
        cosine = _cosine(normal, hits.direction)
        albedo = self._texture(hits.scene, surface, uv, hits.footprint, cosine)
        open_air = _corner_light(room, hits.position, normal)
        light = self._room_light(hits, room, face, axis)
        rgb = _lit(albedo * surface[15:18], normal, hits.position, room, open_air * light)
        if self.has_sky:
            where = ((face == CEILING) & (room[24] > 0)).nonzero()[:, 0]
            rgb[:, where] = self._sky(hits, room, where)
        return rgb

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

    def _room_light(self, hits: Hits, room: Tensor, face: Tensor, axis: Tensor) -> Tensor:
        """(k,) the baked light, 1 off the room's faces."""
        x, y, z = (
            (hits.position[k] - room[k]) / (room[3 + k] - room[k]) * self.grid - 0.5
            for k in range(3)
        )
        across = torch.where(axis == 0, z, x).clamp_(0, self.grid - 1.001)
        along = torch.where(axis == 1, z, y).clamp_(0, self.grid - 1.001)
        a0, b0 = across.long(), along.long()
        on_room = face < NUM_ROOM_FACES
        sheet = hits.scene * NUM_ROOM_FACES + torch.where(on_room, face, 0)
        base = (sheet * self.grid + b0) * self.grid + a0
        fa, fb = across - a0, along - b0
        near = torch.lerp(self.room_light[base], self.room_light[base + 1], fa)
        base = base + self.grid
        far = torch.lerp(self.room_light[base], self.room_light[base + 1], fa)
        return torch.where(on_room, torch.lerp(near, far, fb), 1.0)

    def _sky(self, hits: Hits, room: Tensor, where: Tensor) -> Tensor:
        """(3, m) colours of the hits `where`, by direction alone: a gradient and clouds upon it."""
        dx, dy, dz = (hits.direction[k][where] for k in range(3))
        length = (dx * dx + dy * dy + dz * dz).sqrt()
        up = (-dy / length).clamp(0.0, 1.0)
        room = room[:, where]
        colour = torch.lerp(room[21:24], room[24:27], up.sqrt())
        reach = 1.0 / (length * (up + 0.25))
        base = (hits.scene[where] * self.num_textures + SKY_TEXTURE) * (LEVEL_START[-1] + 1)
        uv = (dx * reach * 0.3, dz * reach * 0.3)
        cover = self._bilinear(base, torch.ones_like(base), uv)[0] / 255
        light = room[21:24].amax(0).clamp(min=0.5)
        return torch.lerp(colour, light.expand_as(colour), (0.85 * cover * up.sqrt()))


def make_shader(scene: Scene, times: Tensor | None = None) -> Shader:
    """`times` as given to `make_views`."""
    s, f = scene.texture.shape
    centre, rotation = places(scene, times)
    k = centre.shape[1]

    def surfaces(of_room: Tensor, of_primitives: Tensor) -> Tensor:
        """(s, 6, ...) and (s, k or 1, p, ...) -> (s, k, 6 + p, ...)"""
        shape = of_primitives.shape[2:]
        faces = of_room[:, None].expand(s, k, NUM_ROOM_FACES, *shape[1:])
        return torch.cat([faces, of_primitives.expand(s, k, *shape)], 2)

    zero = torch.zeros(s, NUM_ROOM_FACES, device=scene.centre.device)
    middle = 0.5 * (scene.room_low + scene.room_high)[:, None].expand(s, NUM_ROOM_FACES, 3)
    half = 0.5 * (scene.room_high - scene.room_low)[:, None].expand(s, NUM_ROOM_FACES, 3)
    kind = surfaces(zero + ROOM, scene.kind[:, None].float())
    turn = surfaces(zero, rotation)
    columns = [kind, *surfaces(middle, centre).unbind(-1)]
    columns += [*surfaces(half, scene.half[:, None]).unbind(-1), turn.cos(), turn.sin()]
    columns += [torch.where(kind == ROOM, -1.0, 1.0)]
    painted = [scene.texture.float(), *scene.period.unbind(-1), *scene.phase.unbind(-1)]
    columns += [value[:, None].expand(s, k, f) for value in (*painted, *scene.tint.unbind(-1))]
    return Shader(
        table=torch.stack(columns).flatten(1).contiguous(),
        room=_room_table(scene),
        atlas=scene.atlas.flatten(),
        room_light=torch.nn.functional.pad(scene.room_light.flatten(), (0, 1)),
        num_surfaces=f,
        num_textures=scene.atlas.shape[1],
        grid=scene.room_light.shape[-1],
        has_sky=bool((scene.sky > 0).any()),
    )


def _room_table(scene: Scene) -> Tensor:
    """(29, s): low, high, lamps, their colours, ambient, sky, fading of lamps, top of corners."""
    is_open = (scene.sky[:, 1] > 0).any(-1)
    values = [scene.room_low, scene.room_high, scene.light.flatten(1)]
    values += [scene.light_colour.flatten(1), scene.ambient, scene.sky.flatten(1)]
    fading = torch.where(is_open, 0.0, 0.05)  # the sun's light does not fade
    corner = torch.where(is_open, -1e3, scene.room_low[:, 1])  # no ceiling takes light away
    return torch.cat([*values, fading[:, None], corner[:, None]], 1).T.contiguous()


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
        low = room[28] if k == 1 else room[k]
        gap = torch.minimum(position[k] - low, room[3 + k] - position[k]).clamp_(min=0.0)
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
        soft = (0.75 * facing + 0.25).clamp_(min=0.0) * open_air / (1.0 + room[27] * square)
        light = light + room[12 + 3 * lamp : 15 + 3 * lamp] * soft
    linear = (albedo * (1 / 255)).square() * light
    return (linear * (1.12 / (1.0 + 0.16 * linear))).clamp_(0.0, 1.0).sqrt()
