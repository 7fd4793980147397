"""What a world model must offer to be served: a few calls on tensors, nothing about sessions, files
or poses' origin.

Axis legend: b sessions, t frames of the chunk, p preceding frames, n any batch, c token channels, h
w latent grid, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from worker.geometry import Cameras
from worker.memory.base import ReadMode
from worker.placed import Placed


@dataclass(frozen=True)
class Condition:
    """Everything a chunk is generated from, batched over sessions."""

    front: Placed  # (b, t, ...) the memory's `nearest` readout
    cameras: Cameras  # (b, t) at grid size
    recent: Tensor  # (b, p, c, h, w) the latents that precede the chunk, oldest first
    recent_cameras: Cameras  # (b, p) at grid size
    finer: Placed | None = None  # (b, t, ...) at twice the grid's size, if it is asked for


class Backbone(Protocol):
    """A video world model: codec, denoiser and latent depth head behind one interface."""

    weights: str  # identifies the weights a World was made with: name@checksum
    continues: frozenset[str]  # others whose Worlds these go on with: their latents mean the same
    channels: int
    stride: int  # pixels per latent cell
    sees_motion: bool  # whether it can tell what moves
    look: ReadMode  # `fine` if its conditions must hold `finer`, else `nearest`, which costs less

    def encode(self, images: Tensor) -> Tensor:
        """(n, 3, H, W) in [-1, 1] -> (n, c, h, w) float32."""
        ...

    def denoise(self, condition: Condition, noise: Tensor) -> Tensor:
        """Generate a chunk; noise (b, t, c, h, w) standard normal -> latents of the same shape."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, 3, H, W) in [-1, 1]."""
        ...

    def depth(
        self, latents: Tensor, cameras: Cameras, hint: Tensor, pictures: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(n, c, h, w) seen by cameras (n,) -> z-depth in metres and confidence in [0, 1], both (n,
        h, w). The hint (n, h, w) is the depth that the memory shows there, 0 where it shows none;
        pictures (n, 3, H, W) in [-1, 1] are what the latents were encoded from, if they were seen.
        """
        ...

    def refine(self, pictures: Tensor, cameras: Cameras, closer: Tensor, rough: Tensor) -> Tensor:
        """z-depth (n, h', w') in metres of the parts of cells, given what comparing n >= 2
        pictures (n, 3, H, W) found: closer (n, 2 h, 2 w), and rough (n, h, w) as it was begun with.
        A backbone that knows no better says `closer`.
        """
        ...

    def motion(self, pictures: Tensor, depth: Tensor, cameras: Cameras) -> Tensor:
        """(n, h, w) probability that a cell shows something that moves, from n >= 2 views of one
        world: pictures (n, 3, H / 2, W / 2) in [-1, 1] and z-depth (n, 2 h, 2 w) in metres, 0 where
        unknown. Not asked of a backbone that does not see motion.
        """
        ...
