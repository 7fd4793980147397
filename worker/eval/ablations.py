"""The same loops with one part of the method taken away.

- `no_coverage`: nobody is told what the memory covers: all cells are said to be remembered;
- `no_fusion`: every observed cell is added, nothing is recognised as seen before;
- `other_NAME`: weights made by another recipe (`--other NAME=FOLDER`), such as those of before the
  stage whose worth is asked for.

Each is run as `observed` and `imagined` and scored like the methods, beside the whole method on the
same scenes (`whole`). Numbers of denoising steps and the dynamics filter have figures of their own
(`steps`, `dynamics`). References can't be taken away: the mini model is not shown any.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from worker.backbones.base import Backbone, Condition
from worker.engine import Engine
from worker.eval.protocols import Loop, Walk, imagined, observed
from worker.eval.scoring import Score, score_walk

PROTOCOLS = ("observed", "imagined")


class Uninformed:
    """A backbone that takes all cells for remembered, else the same."""

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone

    def __getattr__(self, name: str) -> object:
        return getattr(self._backbone, name)

    def denoise(self, condition: Condition, noise: Tensor) -> Tensor:
        front = condition.front
        told = replace(front, coverage=torch.ones_like(front.coverage))
        return self._backbone.denoise(replace(condition, front=told), noise)


def score_ablations(
    engine: Engine,
    others: Mapping[str, Engine],  # with other weights, by the recipe's name
    loop: Loop,
    walks: Mapping[str, Walk],  # of the whole method, by `protocol.method`
    chunk: int,
) -> Iterator[Score]:
    uninformed = Engine(Uninformed(engine.backbone), engine.cfg)  # type: ignore[arg-type]
    variants = {
        "no_coverage": (uninformed, "latent"),
        "no_fusion": (engine, "no-fusion"),
        **{f"other_{name}": (other, "latent") for name, other in others.items()},
    }
    for protocol in PROTOCOLS:
        whole = walks[f"{protocol}.latent"]
        done = {"whole": whole}
        for name, (chosen, memory) in variants.items():
            done[name] = walked(chosen, loop, protocol, memory, chunk)
        for name, walk in done.items():
            for metric, value in score_walk(loop, walk, whole, protocol):
                yield f"ablations.{name}.{protocol}.{metric}", value


def walked(engine: Engine, loop: Loop, protocol: str, memory: str, chunk: int) -> Walk:
    if protocol == "observed":
        return observed(engine, loop, memory, True, chunk)
    return imagined(engine, loop, memory, chunk)
