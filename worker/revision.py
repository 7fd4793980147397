"""Observations without depth, looked at together: what one picture leaves open, later ones tell.

The depth of all in use is found anew with each one by comparing them (worker/depth/stereo.py), with
a second guess by the depth head on the way, and the points of all are placed anew, in one change of
the memory with the newest one's: so each was at last compared with those before and those after it.

Axis legend: n sights, m of them without measured depth, h w the latent grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from worker.backbones.base import Backbone
from worker.depth.stereo import sweep_depths
from worker.geometry import cat_cameras
from worker.memory.base import Delta, Memory
from worker.world import Guess, Sight


class Found(NamedTuple):
    """What comparing m pictures without depth tells of it."""

    depth: Tensor  # (m, h, w) z-depth in metres, 0 where the pictures contradict each other
    confidence: Tensor  # (m, h, w)
    closer: Tensor  # (m, h', w') of their cells' parts; of one alone as `depth`


def compared(backbone: Backbone, sights: Sequence[Sight]) -> Found:
    """Of those among the sights whose depth is guessed; of a single one what was guessed."""
    guessed = [sight for sight in sights if sight.guess is not None]
    depth = torch.cat([guess.depth for guess in guesses_of(sights)])
    confidence = torch.cat([guess.confidence for guess in guesses_of(sights)])
    if len(guessed) == 1:
        return Found(depth, confidence, depth)
    pictures = torch.cat([sight.picture(backbone) for sight in guessed])
    cameras = cat_cameras([sight.camera for sight in guessed]).to(depth.device)
    latents = torch.cat([sight.latents.float() for sight in guessed])

    def guess(agreed: Tensor) -> tuple[Tensor, Tensor]:
        return backbone.depth(latents, cameras, agreed, pictures)

    return Found(*sweep_depths(pictures, cameras, depth, confidence, guess, backbone.refine))


def place(
    memory: Memory,
    sights: Sequence[Sight],  # n
    moving: Tensor,  # (n, h, w) bool, as can be told by now
    found: Found,  # of those m whose depth is guessed
) -> Delta:
    """Write those without measured depth, oldest first; what all but the last added goes.

    The last one, if it is not to be kept for later ones, will never be revised: it only fills what
    is uncovered.
    """
    which = [i for i, sight in enumerate(sights) if sight.guess is not None]
    some = [sights[i] for i in which]
    sources = [sight.source for sight in some]
    hidden = torch.cat([guess.hidden for guess in guesses_of(some)])
    if len(sights) > 1 and not sights[-1].is_apart_from(sights[-2]):
        hidden[-1] |= memory.read(some[-1].camera, "nearest").coverage[0] > 0
    forgotten = memory.forget(sources[:-1])
    written = memory.write(
        torch.cat([sight.latents for sight in some]),
        found.closer,
        cat_cameras([sight.camera for sight in some]),
        sources,
        confidence=found.confidence,
        mask=hidden | moving[which],
        observed=True,
    )
    return after(forgotten, written)


def after(first: Delta, second: Delta) -> Delta:
    """A change that only removed points and the one that followed, as one."""
    return replace(second, removed=torch.cat([first.removed, second.removed]).sort().values)


def guesses_of(sights: Sequence[Sight]) -> list[Guess]:
    return [sight.guess for sight in sights if sight.guess is not None]
