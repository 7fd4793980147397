"""Chunks that go on from what the model itself has made, as at work.

A sample is a few chunks in a row of one walk and a memory of what was seen before them. All but the
last are generated with the weights as they stand, given the head's own depth and remembered where
the memory showed nothing, as worker/engine.py does it; the last one is trained on what the memory
then shows. So the denoiser meets its own inventions in training, moved and from another side, and
not for the first time at work (self forcing, Huang et al., arXiv 2506.08009, without gradients
through the memory).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from worker.backbones.base import Condition
from worker.backbones.denoiser import Denoiser
from worker.backbones.mini import MiniBackbone, MiniConfig, moved
from worker.codec import Codec
from worker.depth.align import align_depths
from worker.depth.head import DepthHead
from worker.memory import create_memory
from worker.memory.base import Delta, Memory, Readout
from worker.train.denoiser import (
    CHUNK,
    SHORT_SHARE,
    Batch,
    Plan,
    conditioned,
    plan,
    remember,
    show,
    truth,
)
from worker.train.footage import Footage
from worker.train.latents import LatentWalks
from worker.train.loop import on_device

MAX_LEAD = 3  # chunks of one frame before the one that is trained; of four frames, one


@dataclass(frozen=True)
class Rollout:
    """Where b walks begin."""

    chunks: list[list[Plan]]  # of each sample: those to be made, then the one to be trained
    deltas: list[list[Delta]]  # what was seen before them; a memory itself can't be sent here
    known: Tensor  # (b, t, h, w) bool: cells of the last chunk that they show


def begin(footage: Footage, batch_size: int, generator: torch.Generator) -> Rollout:
    short = bool(torch.rand((), generator=generator) < SHORT_SHARE)
    lead = 1 + int(torch.randint(MAX_LEAD, (), generator=generator)) if short else 1
    length, size = (1, 2 * batch_size) if short else (CHUNK, batch_size)
    parts = [plan(footage.latents, length * (lead + 1), generator) for _ in range(size)]
    chunks, written, known = [in_chunks(part, length) for part in parts], [], []
    for part, row in zip(parts, chunks, strict=True):
        memory, deltas = remember(footage, part, generator)
        written.append(deltas)
        known.append(show(footage.latents, row[-1], memory).coverage > 0)
    return Rollout(chunks, written, torch.stack(known))


def in_chunks(part: Plan, length: int) -> list[Plan]:
    """One plan as a row of plans, each preceded by the last frame of the one before."""
    starts = range(0, len(part.targets), length)
    before = [part.recent, *part.targets[length - 1 :: length]]
    return [
        replace(part, recent=recent, targets=part.targets[start : start + length])
        for start, recent in zip(starts, before, strict=False)
    ]


def replayed(walks: LatentWalks, deltas: Sequence[Delta]) -> Memory:
    channels, h, w = walks.latents.shape[2:]
    memory = create_memory("latent", channels, (h, w), "cpu")
    for delta in deltas:
        memory.apply(delta)
    return memory


class Player:
    """Plays rollouts with a copy of the denoiser in the dtype of work."""

    def __init__(self, codec: Codec, denoiser: Denoiser, head: DepthHead, device: str) -> None:
        own = (copy.deepcopy(codec), copy.deepcopy(denoiser), copy.deepcopy(head))
        self.backbone = MiniBackbone(*own, "in training", MiniConfig())
        for module in own:
            module.to(device)
        self.device = device

    @torch.no_grad()
    def play(
        self,
        denoiser: Denoiser,
        walks: LatentWalks,
        rollout: Rollout,
        generator: torch.Generator,
    ) -> Batch:
        """Generate and remember all chunks but the last; what is told about that one."""
        self.backbone.denoiser.load_state_dict(denoiser.state_dict())
        memories = [replayed(walks, deltas) for deltas in rollout.deltas]
        latest: Tensor | None = None
        *lead, last = (list(parts) for parts in zip(*rollout.chunks, strict=True))
        for parts in lead:
            readouts = self._shown(walks, parts, memories)
            condition = self._condition(walks, parts, readouts, latest)
            noise = torch.randn(condition.front.tokens.shape, generator=generator)
            latents = self.backbone.denoise(condition, noise.to(self.device))
            for one in zip(parts, memories, readouts, latents, strict=True):
                self._remember(walks, *one)
            latest = latents[:, -1:]
        readouts = self._shown(walks, last, memories)
        condition = moved(self.backbone.codec, self._condition(walks, last, readouts, latest))
        rest = on_device((*truth(walks, last), rollout.known), self.device)
        return Batch(condition, *rest)

    def _shown(
        self, walks: LatentWalks, parts: Sequence[Plan], memories: Sequence[Memory]
    ) -> list[Readout]:
        look = self.backbone.look
        return [show(walks, *one, look) for one in zip(parts, memories, strict=True)]

    def _condition(
        self,
        walks: LatentWalks,
        parts: Sequence[Plan],
        readouts: Sequence[Readout],
        latest: Tensor | None,
    ) -> Condition:
        condition: Condition = on_device(conditioned(walks, parts, readouts), self.device)
        return condition if latest is None else replace(condition, recent=latest)

    def _remember(
        self, walks: LatentWalks, part: Plan, memory: Memory, readout: Readout, latents: Tensor
    ) -> None:
        cameras = walks.cameras[part.scene, part.targets]
        guess, confidence = self.backbone.depth(latents, cameras, readout.depth.to(self.device))
        depth = align_depths(guess.cpu(), readout.depth, readout.coverage)
        tokens = latents.bfloat16().cpu()
        memory.write(
            tokens, depth, cameras, part.targets, confidence=confidence.cpu(), readout=readout
        )
