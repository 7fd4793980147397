"""A World: everything one session must remember between chunks, and the Increment that each step
adds to it.

A World is nothing but the replay of its increments, so any worker that has them can continue it bit
for bit. Noise is a function of (seed, frame index) alone; no generator state is kept.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Protocol

import torch
from torch import Tensor

from worker.geometry import Cameras, cat_cameras
from worker.memory.base import Delta, Memory
from worker.pixels import from_uint8, levels
from worker.placed import in_quarters

WINDOW = 12  # observations that are compared for their depth
MOTION_WINDOW = 4  # of them, looked at for what moves: the motion head knows no more
PARALLAX = 1.5  # cells; pictures that differ by less of both are not kept for the next ones
TURN = 8.0  # of a norm that is √2 times the angle: 5.7 cells
GUESSED_SHARE = 1 / 3  # of either, where depth is guessed: more of these are in use
PATIENCE = 8  # frames and observations until one with depth is kept nevertheless
SKY_M = 100.0  # how far away is what has no depth


class Decoder(Protocol):
    def decode(self, latents: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, 3, H, W) in [-1, 1]."""
        ...


@dataclass(frozen=True)
class Guess:
    """What was made of one observed picture that came without depth."""

    depth: Tensor  # (1, h, w) float32 z-depth in metres, from that picture and the memory
    confidence: Tensor  # (1, h, w) float32 of it
    hidden: Tensor  # (1, h, w) bool: cells that must not be remembered


@dataclass
class Sight:
    """An observation that later ones are compared with, and may revise."""

    guess: Guess | None  # None if its depth was measured
    measured: Tensor | None  # (1, CLOSER h, CLOSER w) float16 z-depth in metres, 0 where unknown
    latents: Tensor  # (1, c, h, w) bfloat16
    camera: Cameras  # (1,)
    source: int  # the number that its points carry
    _picture: Tensor | None = None  # (1, H, W, 3) uint8, derived

    @property
    def closer(self) -> Tensor:
        """(1, CLOSER h, CLOSER w) z-depth in metres, 0 where unknown, measured or guessed."""
        if self.measured is not None:
            return self.measured.float()
        assert self.guess is not None
        return in_quarters(self.guess.depth)

    def picture(self, decoder: Decoder) -> Tensor:
        """(1, 3, H, W) in [-1, 1]; decoded once."""
        if self._picture is None:
            self._picture = levels(decoder.decode(self.latents.float()).float())
        return from_uint8(self._picture)

    def is_apart_from(self, other: Sight) -> bool:
        """Whether the camera has moved or turned far enough to tell depth, or to see more."""
        grid = self.latents.shape[-2:]
        focal = float(self.camera.resized(*grid).intrinsics[0, 0])
        moved = self.camera.camera_from_world[0] @ other.camera.world_from_camera[0]
        depth = self.closer
        distance_m = float(depth[depth > 0].median()) if bool((depth > 0).any()) else SKY_M
        parallax = focal * float(moved[:3, 3].norm()) / distance_m
        turned = focal * float((moved[:3, :3] - torch.eye(3, dtype=moved.dtype)).norm())
        enough = 1.0 if self.guess is None else GUESSED_SHARE
        return max(parallax / PARALLAX, turned / TURN) >= enough

    @property
    def num_bytes(self) -> int:
        held = [self.latents, self.measured]
        held += [] if self.guess is None else vars(self.guess).values()
        return sum(one.nbytes for one in held if one is not None)

    @property
    def picture_bytes(self) -> int:
        return 3 * self.camera.height * self.camera.width


@dataclass(frozen=True)
class Increment:
    """What one observation or one chunk added to a World; immutable once made, the payload of a
    segment.
    """

    delta: Delta
    frame_indices: tuple[int, ...]  # of the frames shown; empty for an observation that shows none
    images: Tensor  # (frames shown, H, W, 3) uint8 on the CPU
    cameras: Cameras  # (t,) at the frames' size
    latents: Tensor  # (t, c, h, w) bfloat16: what the next chunk is preceded by
    coverage: Tensor  # (t, h, w) float32: how much of each frame the memory knew beforehand
    timings_ms: dict[str, float]  # per stage, for the whole batch that this step was part of
    depth: Tensor | None = None  # of frames: (t, h, w) float16, metres, 0 if unknown; for clients
    guess: Guess | None = None  # of an observation without depth
    measured: Tensor | None = None  # (1, CLOSER h, CLOSER w) float16 of one with, for later ones
    colours: Tensor | None = None  # (1, h, w, 3) uint8 on the CPU, of one that shows no frame

    def to(self, device: str) -> Increment:
        if self.latents.device == torch.device(device):
            return self
        delta = Delta(*(getattr(self.delta, one.name).to(device) for one in fields(Delta)))
        guess = self.guess
        if guess is not None:
            guess = Guess(*(value.to(device) for value in vars(guess).values()))
        measured = None if self.measured is None else self.measured.to(device)
        latents = self.latents.to(device)
        return replace(self, delta=delta, latents=latents, guess=guess, measured=measured)


@dataclass
class World:
    """One session's state on a device."""

    memory: Memory
    seed: int
    num_recent: int
    next_frame: int = 0
    next_source: int = 0  # frames and observations are numbered together as sources of points
    latents: Tensor | None = None  # (p, c, h, w) of the latest views, oldest first
    cameras: Cameras | None = None  # (p,) and their cameras
    sights: list[Sight] = field(default_factory=list)  # the latest, at most WINDOW, oldest first

    @property
    def num_bytes(self) -> int:
        """Of what is held beside the memory; a restored World decodes its pictures with the next
        observation, and of a single sight nobody needs one.
        """
        recent: int = 0 if self.latents is None else self.latents.nbytes
        pictures = self.sights if len(self.sights) > 1 else []
        held = sum(sight.num_bytes for sight in self.sights)
        return recent + held + sum(sight.picture_bytes for sight in pictures)

    def apply(self, increment: Increment, sight: Sight | None = None) -> None:
        """Advance by an increment whose delta the memory already holds; `sight` is what is kept of
        an observation, if it was made before.
        """
        self._keep(sight or self._sight(increment))
        self.next_source += len(increment.latents)
        self.next_frame += len(increment.frame_indices)
        latents, cameras = increment.latents, increment.cameras
        if self.latents is not None and self.cameras is not None:
            latents = torch.cat([self.latents, latents.to(self.latents.device)])
            cameras = cat_cameras([self.cameras, cameras])
        # A young World repeats its oldest view, so that Worlds of any age batch together.
        latest = torch.arange(len(latents) - self.num_recent, len(latents)).clamp(min=0)
        self.latents, self.cameras = latents[latest], cameras[latest]

    def _sight(self, increment: Increment) -> Sight:
        seen = (increment.guess, increment.measured, increment.latents, increment.cameras)
        return Sight(*seen, self.next_source)

    def _keep(self, sight: Sight) -> None:
        """An observation for later ones, if it shows enough that is new."""
        if sight.guess is None and sight.measured is None:
            return
        if self.sights and not sight.is_apart_from(self.sights[-1]):
            is_recent = sight.source - self.sights[-1].source < PATIENCE
            if sight.measured is None or is_recent:
                return
        self.sights = in_use([*self.sights, sight])


def in_use(sights: list[Sight]) -> list[Sight]:
    """The latest, oldest first: those whose depth was measured are of no use for others'."""
    older, newer = sights[:-MOTION_WINDOW], sights[-MOTION_WINDOW:]
    return [*(sight for sight in older if sight.guess is not None), *newer][-WINDOW:]
