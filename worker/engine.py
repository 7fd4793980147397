"""The method: read the memory, generate the chunk, decode it, estimate its depth, remember it.

The world is never rendered to pixels and encoded again: what the memory shows to the new cameras is
already in the denoiser's language. All calls are batched over sessions; each session's result is a
function of its own World alone (in deterministic mode bit for bit, since then sessions are computed
one at a time).

Axis legend: b sessions, t frames of a chunk, p preceding frames, c channels, h w latent grid, H W
pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from worker.backbones.base import Backbone
from worker.clock import Clock
from worker.conditioning import chunk_noise, condition_on
from worker.depth.align import align_depths
from worker.depth.fill import filled
from worker.depth.mirrored import depth_both_ways
from worker.dynamics import kept_out, moving_cells, withdraw
from worker.geometry import Cameras, masked_cells, pool_depth
from worker.memory import create_memory, read_many
from worker.memory.base import Readout
from worker.memory.latent import LatentMemoryConfig
from worker.pixels import cell_colours, from_uint8, to_uint8
from worker.placed import FINER
from worker.revision import after, compared, place
from worker.world import Guess, Increment, Sight, World, in_use


@dataclass(frozen=True)
class EngineConfig:
    height: int = 192
    width: int = 320
    num_recent: int = 1  # preceding frames shown to the denoiser
    deterministic: bool = False
    device: str = "cpu"
    memory: LatentMemoryConfig = field(default_factory=LatentMemoryConfig)


class Looks(NamedTuple):
    """A picture as the engine sees it."""

    latents: Tensor  # (1, c, h, w) bfloat16
    mirrored: Tensor | None  # (1, c, h, w) bfloat16 of its mirror image, if depth is to be guessed


class Engine:
    """Steps Worlds; owns no session."""

    def __init__(self, backbone: Backbone, cfg: EngineConfig) -> None:
        self.backbone, self.cfg = backbone, cfg
        self.grid = (cfg.height // backbone.stride, cfg.width // backbone.stride)
        self.finer_grid = (FINER * self.grid[0], FINER * self.grid[1])

    def open(self, seed: int, memory: str = "latent") -> World:
        """An empty World; `observe` gives it its first image."""
        cfg, channels = self.cfg, self.backbone.channels
        store = create_memory(memory, channels, self.grid, cfg.device, cfg.memory, self.backbone)
        return World(store, seed, self.cfg.num_recent)

    @torch.inference_mode()
    def encode(self, images: Sequence[Tensor], guessed: Sequence[bool]) -> list[Looks]:
        """(H, W, 3) uint8 each -> what `observe` takes, with the mirror image of those whose depth
        is to be guessed.
        """
        pixels = from_uint8(torch.stack(list(images))).to(self.cfg.device)
        mirrored = pixels[torch.tensor(guessed)].flip(-1)
        every = torch.cat([pixels, mirrored])
        groups = every.split(1) if self.cfg.deterministic else (every,)
        latents = [one for some in groups for one in self.backbone.encode(some).bfloat16().split(1)]
        others = iter(latents[len(pixels) :])
        return [
            Looks(one, next(others) if is_guessed else None)
            for one, is_guessed in zip(latents, guessed, strict=False)
        ]

    @torch.inference_mode()
    def observe(
        self,
        world: World,
        image: Tensor,  # (H, W, 3) uint8
        camera: Cameras,  # (1,)
        depth: Tensor | None = None,  # (H', W') z-depth in metres; 0 or NaN = unknown
        mask: Tensor | None = None,  # (H', W') True = keep out of the memory (moving, sky)
        centre_m: float | None = None,  # without depth: how far what stands at the centre is
        looks: Looks | None = None,  # of the image, if it was encoded before
    ) -> Increment:
        """Write what was really seen; the first image becomes frame 0, later ones are not shown."""
        clock = Clock()
        with clock("read"):
            readout = world.memory.read(camera, "nearest")
        with clock("encode"):
            looks = looks or self.encode([image], [depth is None])[0]
            latents = looks.latents
        with clock("depth"):
            sight = self._sight(world, looks, camera, depth, mask, readout, centre_m)
        sights = in_use([*world.sights, sight])
        found = None
        if depth is None:
            with clock("compare"):
                found = compared(self.backbone, sights)
        with clock("motion"):
            moving = moving_cells(self.backbone, sights, found)
        with clock("write"):
            delta = withdraw(world.memory, sights[:-1], moving[:-1])
            if found is not None:
                assert sight.guess is not None
                known = sight.guess.depth
                written = place(world.memory, sights, moving, found)
            else:
                assert depth is not None
                known, confidence = filled(self.backbone, latents, camera, depth[None])
                written = world.memory.write(
                    latents,
                    known,
                    camera,
                    [sight.source],
                    confidence=confidence,
                    mask=kept_out(moving[-1:], mask),
                    observed=True,
                    readout=None if len(delta.removed) else readout,  # it is of before
                    images=image[None],
                )
        shown = (0,) if world.next_frame == 0 else ()
        with clock("decode"):
            images = to_uint8(self.backbone.decode(latents[: len(shown)].float()))
        coverage = readout.coverage.cpu()
        increment = Increment(
            after(delta, written),
            shown,
            images,
            camera,
            latents,
            coverage,
            clock.timings_ms,
            depth=half(pool_depth(known, self.grid)).cpu() if shown else None,
            guess=sight.guess,
            measured=sight.measured,
            colours=None if shown else cell_colours(image, self.grid)[None],
        )
        world.apply(increment, sight)
        return increment

    def _sight(
        self,
        world: World,
        looks: Looks,
        camera: Cameras,
        depth: Tensor | None,
        mask: Tensor | None,
        readout: Readout,
        centre_m: float | None,
    ) -> Sight:
        """An observation for others to be compared with; its depth is guessed if none is given."""
        guess = measured = None
        latents = looks.latents
        if depth is None:
            assert looks.mirrored is not None
            both = (latents.float(), looks.mirrored.float())
            own, confidence = depth_both_ways(self.backbone, *both, camera, readout.depth)
            own = align_depths(own, readout.depth, readout.coverage, centre_m)
            hidden = torch.zeros_like(own, dtype=torch.bool)
            if mask is not None:
                hidden = masked_cells(mask[None].to(own.device), self.grid)
            guess = Guess(own, confidence, hidden)
        elif self.backbone.sees_motion:
            measured = half(pool_depth(depth[None].to(latents.device), self.finer_grid))
        return Sight(guess, measured, latents, camera, world.next_source)

    def step(self, worlds: Sequence[World], cameras: Sequence[Cameras]) -> list[Increment]:
        """Generate one chunk for each World, seen by its cameras (t,); t is the same for all."""
        if self.cfg.deterministic:
            pairs = zip(worlds, cameras, strict=True)
            return [self._step([world], [views])[0] for world, views in pairs]
        return self._step(worlds, cameras)

    @torch.inference_mode()
    def _step(self, worlds: Sequence[World], cameras: Sequence[Cameras]) -> list[Increment]:
        clock = Clock()
        with clock("read"):
            memories = [world.memory for world in worlds]
            readouts = read_many(memories, cameras, self.backbone.look)
        with clock("denoise"):
            condition = condition_on(worlds, cameras, readouts, self.grid)
            noise = torch.stack([chunk_noise(world, condition.front.tokens[0]) for world in worlds])
            latents = self.backbone.denoise(condition, noise).bfloat16()
        with clock("decode"):
            images = to_uint8(self.backbone.decode(latents.flatten(0, 1).float()))
        return [
            self._remember(*state, clock)
            for state in zip(
                worlds,
                cameras,
                readouts,
                latents,
                images.unflatten(0, latents.shape[:2]),
                strict=True,
            )
        ]

    def _remember(
        self,
        world: World,
        views: Cameras,  # (t,)
        readout: Readout,
        latents: Tensor,  # (t, c, h, w) bfloat16
        images: Tensor,  # (t, H, W, 3) uint8
        clock: Clock,
    ) -> Increment:
        """Place what was generated in the world, where the memory showed nothing."""
        with clock("depth"):
            guess, confidence = self.backbone.depth(latents.float(), views, readout.depth)
            depth = align_depths(guess, readout.depth, readout.coverage)
        with clock("write"):
            sources = [world.next_source + i for i in range(len(views))]
            delta = world.memory.write(
                latents,
                depth,
                views,
                sources,
                confidence=confidence,
                readout=readout,
                images=images,
            )
        shown = tuple(world.next_frame + i for i in range(len(views)))
        coverage = readout.coverage.cpu()
        seen = (coverage, clock.timings_ms, depth.half().cpu())
        increment = Increment(delta, shown, images, views, latents, *seen)
        world.apply(increment)
        return increment

    def replay(self, world: World, increment: Increment) -> None:
        """Repeat on a restored World what `observe` or `step` did."""
        world.memory.apply(increment.delta)
        world.apply(increment)


def half(depth: Tensor) -> Tensor:
    """As float16, whose range an upload's metres may leave."""
    return depth.clamp(max=torch.finfo(torch.half).max).half()
