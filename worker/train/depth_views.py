"""Single views as the depth head is trained on them: latents, rays, depth, a hint and what is seen
of the picture each.

A hint is what a memory of a few other frames of the walk shows to the view, as depth and the frame
that each cell's came from. Hints are made once, since memories are slow to fill; the wrong scale
that they have at work is given to them anew each time a view is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from worker.backbones.rays import view_rays
from worker.depth.seen import seen
from worker.memory import create_memory
from worker.photographic import Features
from worker.train.data import Walks
from worker.train.latents import LatentWalks
from worker.train.loop import step_generator
from worker.train.mirror import Mirrored

MAX_CONTEXT = 3


@dataclass(frozen=True)
class DepthViews:
    """n views."""

    latents: Tensor  # (n, c, h, w) bfloat16
    rays: Tensor  # (n, 2, h, w) float32
    depth: Tensor  # (n, h, w) float32 z-depth in metres, 0 where unknown
    hint: Tensor  # (n, h, w) float32 z-depth of a memory of other frames, 0 where it shows none
    source: Tensor  # (n, h, w) int8: which of these frames each cell of the hint came from
    half: Tensor  # (n, c', h / 2, w / 2) bfloat16, what is seen of the pictures
    quarter: Tensor  # (n, c", h / 4, w / 4) bfloat16

    def __len__(self) -> int:
        return len(self.latents)

    def mirrored(self, latents: Tensor, features: Sequence[Tensor]) -> DepthViews:
        """The same views left to right, whose latents (n, c, h, w) and features are given."""
        rays = self.rays.flip(-1) * torch.tensor([-1.0, 1.0]).view(1, 2, 1, 1)
        others = (part.flip(-1) for part in (self.depth, self.hint, self.source))
        return DepthViews(latents, rays, *others, *features)


def joined(parts: list[DepthViews]) -> DepthViews:
    names = [field.name for field in fields(DepthViews)]
    return DepthViews(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


class Hints(Dataset[tuple[Tensor, Tensor]]):
    """The hint of each frame of each walk, a function of (seed, frame)."""

    def __init__(self, walks: LatentWalks, seed: int) -> None:
        self.walks, self.seed = walks, seed

    @torch.no_grad()
    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        generator = step_generator(self.seed, index)
        return hint(self.walks, *divmod(index, self.walks.latents.shape[1]), generator)


@torch.no_grad()
def features_of(eyes: Features, walks: Walks | Mirrored, device: str = "cpu") -> list[Tensor]:
    """What is seen of the pictures of all walks, bfloat16 on the CPU: (s t, c', h / 2, w / 2) and
    (s t, c", h / 4, w / 4).
    """
    eyes, frames, found = eyes.to(device), torch.arange(walks.cfg.num_frames)[None], []
    for scene in range(walks.cfg.num_scenes):
        pictures = walks.images(torch.tensor([scene]), frames)[0].to(device)
        parts = seen(eyes, pictures)
        found.append([part.bfloat16().cpu() for part in parts])
    return [torch.cat(parts) for parts in zip(*found, strict=True)]


def views_of(
    walks: LatentWalks, features: Sequence[Tensor], seed: int, num_workers: int = 0
) -> DepthViews:
    """All frames of all walks, a hint for each."""
    num_scenes, num_frames = walks.latents.shape[:2]
    frames = range(num_scenes * num_frames)
    loader = DataLoader(Hints(walks, seed), None, sampler=frames, num_workers=num_workers)
    # Copies, as each tensor of another process holds a file open.
    hints = [[part.clone() for part in both] for both in loader]
    depth, source = (torch.stack(part) for part in zip(*hints, strict=True))
    rays = torch.cat([view_rays(walks.cameras[scene]) for scene in range(num_scenes)])
    known = (walks.latents.flatten(0, 1), rays, walks.depth.flatten(0, 1))
    return DepthViews(*known, depth, source, *features)


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
    shown = memory.read(walks.cameras[scene, frame : frame + 1], "nearest")
    return shown.depth[0], shown.source[0].clamp(min=0).to(torch.int8)
