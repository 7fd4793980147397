"""Single views as the depth head is trained on them: latents, rays, depth and a hint each.

A hint is what a memory of a few other frames of the walk shows to the view, as depth and the frame
that each cell's came from. Hints are made once, since memories are slow to fill; the wrong scale
that they have at work is given to them anew each time a view is drawn.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from worker.backbones.rays import view_rays
from worker.memory import create_memory
from worker.train.latents import LatentWalks

MAX_CONTEXT = 3


@dataclass(frozen=True)
class DepthViews:
    """n views."""

    latents: Tensor  # (n, c, h, w) bfloat16
    rays: Tensor  # (n, 2, h, w) float32
    depth: Tensor  # (n, h, w) float32 z-depth in metres, 0 where unknown
    hint: Tensor  # (n, h, w) float32 z-depth of a memory of other frames, 0 where it shows none
    source: Tensor  # (n, h, w) int8: which of these frames each cell of the hint came from

    def __len__(self) -> int:
        return len(self.latents)

    def mirrored(self, latents: Tensor) -> DepthViews:
        """The same views left to right, whose latents (n, c, h, w) are given."""
        rays = self.rays.flip(-1) * torch.tensor([-1.0, 1.0]).view(1, 2, 1, 1)
        others = (part.flip(-1) for part in (self.depth, self.hint, self.source))
        return DepthViews(latents, rays, *others)


def joined(parts: list[DepthViews]) -> DepthViews:
    names = [field.name for field in fields(DepthViews)]
    return DepthViews(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


@torch.no_grad()
def views_of(walks: LatentWalks, seed: int) -> DepthViews:
    """All frames of all walks, a hint for each."""
    num_scenes, num_frames = walks.latents.shape[:2]
    generator = torch.Generator().manual_seed(seed)
    pairs = [(scene, frame) for scene in range(num_scenes) for frame in range(num_frames)]
    hints = [hint(walks, *pair, generator) for pair in pairs]
    depth, source = (torch.stack(part) for part in zip(*hints, strict=True))
    rays = torch.cat([view_rays(walks.cameras[scene]) for scene in range(num_scenes)])
    return DepthViews(walks.latents.flatten(0, 1), rays, walks.depth.flatten(0, 1), depth, source)


def hint(
    walks: LatentWalks, scene: int, frame: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """(h, w) depth that a memory of other frames of the scene shows to this one, 0 for none, and
    (h, w) the number of the frame that it came from, among those remembered.
    """
    channels, h, w = walks.latents.shape[2:]
    memory = create_memory("latent", channels, (h, w), "cpu")
    order = torch.randperm(walks.latents.shape[1], generator=generator).tolist()
    count = int(torch.randint(1, MAX_CONTEXT + 1, (), generator=generator))
    for number, other in enumerate([f for f in order if f != frame][:count]):
        one = slice(other, other + 1)
        tokens, depth = walks.latents[scene, one].float(), walks.depth[scene, one]
        memory.write(tokens, depth, walks.cameras[scene, one], [number], observed=True)
    seen = memory.read(walks.cameras[scene, frame : frame + 1], "nearest")
    return seen.depth[0], seen.source[0].clamp(min=0).to(torch.int8)
