"""Remembered tokens and where they lie in a view: what a backbone is told of one surface."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

FINER = 2  # a finer readout has so many times as many cells, each way


def in_parts(maps: Tensor) -> Tensor:
    """(n, h, w) -> (n, FINER h, FINER w): each cell's value for all of its parts."""
    return maps.repeat_interleave(FINER, -2).repeat_interleave(FINER, -1)


@dataclass(frozen=True)
class Placed:
    tokens: Tensor  # (..., c, h, w), zeros where nothing is covered
    coverage: Tensor  # (..., h, w) in [0, 1]
    depth: Tensor  # (..., h, w) z-depth in metres, 0 where nothing is covered
    offset: Tensor  # (..., 2, h, w) cells in u, v from each cell's centre to where its token lies
    span: Tensor  # (..., 2, h, w) cells in u, v that the token's patch spans; 0 if uncovered
    behind: Placed | None = None  # the next surface in each cell

    def flatten(self) -> Placed:
        """The same with its two leading dimensions as one."""
        parts = (self.tokens, self.coverage, self.depth, self.offset, self.span)
        tokens, coverage, depth, offset, span = (value.flatten(0, 1) for value in parts)
        behind = None if self.behind is None else self.behind.flatten()
        return Placed(tokens, coverage, depth, offset, span, behind)

    def with_tokens(self, change: Callable[[Tensor], Tensor]) -> Placed:
        behind = None if self.behind is None else self.behind.with_tokens(change)
        return replace(self, tokens=change(self.tokens), behind=behind)
