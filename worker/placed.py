"""Remembered tokens and where they lie in a view: what a backbone is told of one surface."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

FINER = 4  # a finer readout has so many times as many cells, each way
NUM_PARTS = FINER**2  # of a cell, row by row
CLOSER = 2  # depth that pictures are compared by has so many times as many cells, each way


def in_quarters(maps: Tensor) -> Tensor:
    """(n, h, w) -> (n, CLOSER h, CLOSER w): each cell's value for all of its quarters."""
    return maps.repeat_interleave(CLOSER, -2).repeat_interleave(CLOSER, -1)


def middle_of(part: Tensor, finer: int = FINER) -> Tensor:
    """(..., h, w) int64 -> (..., 2, h, w): where these parts of cells lie in u and v, in cells."""
    place = torch.stack([part % finer, torch.div(part, finer, rounding_mode="floor")], dim=-3)
    return (place + 0.5) / finer - 0.5


def part_at(middle: Tensor, finer: int = FINER) -> Tensor:
    """The inverse of `middle_of`, or which larger part one lies in."""
    column, row = ((middle + 0.5) * finer).long().unbind(-3)
    return row * finer + column


@dataclass(frozen=True)
class Placed:
    tokens: Tensor  # (..., c, h, w), zeros where nothing is covered
    coverage: Tensor  # (..., h, w) in [0, 1]
    depth: Tensor  # (..., h, w) z-depth in metres, 0 where nothing is covered
    offset: Tensor  # (..., 2, h, w) cells in u, v from each cell's centre to where its token lies
    span: Tensor  # (..., 2, h, w) cells in u, v that the token's patch spans; 0 if uncovered
    within: Tensor | None = None  # (..., 2, h, w) of a token's part: its middle_of; None if whole
    second: Placed | None = None  # what else is known there, see worker/splat/plain.py

    def flatten(self) -> Placed:
        """The same with its two leading dimensions as one."""
        parts = (self.tokens, self.coverage, self.depth, self.offset, self.span)
        tokens, coverage, depth, offset, span = (value.flatten(0, 1) for value in parts)
        within = None if self.within is None else self.within.flatten(0, 1)
        second = None if self.second is None else self.second.flatten()
        return Placed(tokens, coverage, depth, offset, span, within, second)

    def with_tokens(self, change: Callable[[Tensor], Tensor]) -> Placed:
        second = None if self.second is None else self.second.with_tokens(change)
        return replace(self, tokens=change(self.tokens), second=second)
