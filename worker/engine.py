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

import torch
from torch import Tensor

from worker.backbones.base import Backbone
from worker.clock import Clock
from worker.conditioning import chunk_noise, condition_on
from worker.depth.align import align_depths
from worker.geometry import Cameras
from worker.memory import create_memory, read_many
from worker.memory.base import Readout
from worker.memory.latent import LatentMemoryConfig
from worker.observation import Looks, Observation, look_at, write_observation
from worker.pixels import to_uint8
from worker.world import Increment, World


@dataclass(frozen=True)
class EngineConfig:
    height: int = 192
    width: int = 320
    num_recent: int = 1  # preceding frames shown to the denoiser
    deterministic: bool = False
    device: str = "cpu"
    memory: LatentMemoryConfig = field(default_factory=LatentMemoryConfig)


class Engine:
    """Steps Worlds; owns no session."""

    def __init__(self, backbone: Backbone, cfg: EngineConfig) -> None:
        self.backbone, self.cfg = backbone, cfg
        self.grid = (cfg.height // backbone.stride, cfg.width // backbone.stride)

    def open(self, seed: int, memory: str = "latent") -> World:
        """An empty World; `observe` gives it its first image."""
        cfg, channels = self.cfg, self.backbone.channels
        store = create_memory(memory, channels, self.grid, cfg.device, cfg.memory, self.backbone)
        return World(store, seed, self.cfg.num_recent)

    @torch.inference_mode()
    def encode(self, images: Sequence[Tensor], guessed: Sequence[bool]) -> list[Looks]:
        """(H, W, 3) uint8 each -> what `observe` takes; `guessed`: which are without depth."""
        cfg = self.cfg
        return look_at(self.backbone, images, guessed, cfg.device, one_by_one=cfg.deterministic)

    @torch.inference_mode()
    def observe(
        self,
        world: World,
        image: Tensor,  # (H, W, 3) uint8
        camera: Cameras,  # (1,)
        depth: Tensor | None = None,
        mask: Tensor | None = None,
        centre_m: float | None = None,
        looks: Looks | None = None,  # of the image, if it was encoded before
    ) -> Increment:
        """Write what was really seen, an Observation; the first one becomes frame 0."""
        clock = Clock()
        with clock("encode"):
            looks = looks or self.encode([image], [depth is None])[0]
        seen = Observation(image, camera, depth, mask, centre_m)
        return write_observation(self.backbone, world, seen, looks, clock)

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
