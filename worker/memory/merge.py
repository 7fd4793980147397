"""Many deltas as few, so that restoring a memory costs what it holds and not how it came about.

Points that a later delta removed are never added. What was contradicted once is noted in a second
delta, since within one, strikes come before additions. The state is the same bit for bit as after
all deltas in order; only spare rows and counters of what was removed differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

import torch
from torch import Tensor

from worker.memory.base import Delta
from worker.memory.points import in_full

POINTS = ("ids", "depth", "tokens", "quality", "slant", "relief")
FRAMES = ("serials", "source", "intrinsics", "world_from_camera")


def merged(deltas: Sequence[Delta]) -> list[Delta]:
    """At most two deltas that make of an empty memory what these make of it, in their order."""
    if len(deltas) < 2:
        return list(deltas)
    parts = max(delta.relief.shape[1] for delta in deltas)
    deltas = [replace(delta, relief=in_full(delta.relief, parts)) for delta in deltas]
    every = {one.name: torch.cat([getattr(x, one.name) for x in deltas]) for one in fields(Delta)}
    kept = ~torch.isin(every["ids"], every["removed"])
    struck, struck_quality = _last(every["struck"], every["struck_quality"])
    alive = torch.isin(struck, every["ids"][kept])
    nothing = {name: every[name][:0] for name in every}
    added = replace(
        deltas[0],
        **nothing
        | {name: every[name][kept] for name in POINTS}
        | {name: every[name] for name in FRAMES},
    )
    if not bool(alive.any()):
        return [added]
    strikes = {"struck": struck[alive], "struck_quality": struck_quality[alive]}
    return [added, replace(deltas[0], **nothing | strikes)]


def _last(ids: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Ascending ids without repeats, each with the last of its values."""
    order = ids.argsort(stable=True)
    ids, values = ids[order], values[order]
    is_last = torch.ones_like(ids, dtype=torch.bool)
    is_last[:-1] = ids[1:] != ids[:-1]
    return ids[is_last], values[is_last]
