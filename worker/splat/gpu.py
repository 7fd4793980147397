"""Reads points on a GPU: many sessions in one call of the fused kernels.

Sessions may differ in size, not in grid, token format or number of views. A `Batch` holds where the
sessions' columns lie; while no session changes it can be read again and again, also from a captured
CUDA graph, as a read allocates and launches but never waits.

Axis legend: s sessions, t cameras, h w the latent grid, c channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from worker.geometry import Cameras
from worker.memory.points import Points
from worker.splat import fused as kernels
from worker.splat.cpu import Surface
from worker.splat.plain import NOTHING, TWO, Mode

NEAREST_NOTHING = 0x7F800000  # the bits of an infinite depth
TILE = 32  # cells whose winners one program gathers


@dataclass(frozen=True)
class Batch:
    """Sessions to be read together, valid until one of them changes."""

    table: Tensor  # (s, WIDTH) int64: addresses of each session's columns, and its blocks
    held: tuple[Tensor, ...]  # what the addresses point to
    max_blocks: int
    channels: int
    is_int8: bool
    offset: float
    width: int  # of the frames' grid
    num_parts: int  # of a cell whose depths are known, or 0
    cell: tl.dtype

    def __len__(self) -> int:
        return len(self.table)


class First(NamedTuple):
    """What tells the first surface from a second one."""

    depth: Tensor  # (s * t, h * w) int32 bits of its nearest depths
    rank: Tensor  # (s * t, h * w) int64 of its winners


def batch_of(sessions: Sequence[Points]) -> Batch:
    """The sessions' points, all on one device."""
    one = sessions[0]
    forms = {
        (points.grid, points.token_format, points.offset, points.num_parts) for points in sessions
    }
    if len(forms) > 1:
        raise ValueError(f"sessions of different grids or formats can't be read together: {forms}")
    rows, held = [], list[Tensor]()
    for points in sessions:
        columns = [_column(points, name) for name in kernels.COLUMNS]
        held += columns
        rows.append([column.data_ptr() for column in columns] + [len(points.blocks)])
    return Batch(
        table=torch.tensor(rows, dtype=torch.int64).to(one["depth"].device, non_blocking=True),
        held=tuple(held),
        max_blocks=max(len(points.blocks) for points in sessions),
        channels=one["tokens"].shape[1],
        is_int8=one.token_format == "int8",
        offset=one.offset,
        width=one.grid[1],
        num_parts=one.num_parts,
        cell=tl.int16 if one["cell"].dtype == torch.int16 else tl.int32,
    )


def read(
    batch: Batch,
    cameras: Cameras,
    mode: Mode = "nearest",
    with_tokens: bool = True,
    in_parts: bool = False,
) -> Surface:
    """What cameras (s, t) see, of any size: fields of (s * t, ...)."""
    parts = max(batch.num_parts, 1) if in_parts else 1
    front, first = _read(batch, cameras, None, mode, with_tokens, parts)
    if mode not in TWO:
        return front
    return replace(front, second=_read(batch, cameras, first, mode, with_tokens, parts)[0])


def _read(
    batch: Batch, cameras: Cameras, other: First | None, mode: Mode, with_tokens: bool, parts: int
) -> tuple[Surface, First]:
    """One surface, or the second beside another one, and what the next must know of it."""
    num_sessions, num_views = cameras.shape
    h, w, num = cameras.height, cameras.width, num_sessions * num_views
    device, size = batch.table.device, h * w
    channels = batch.channels if with_tokens else 0
    views = (cameras.world_from_camera.contiguous(), cameras.intrinsics.contiguous())
    front = torch.full((num, size), NEAREST_NOTHING, dtype=torch.int32, device=device)
    rank = torch.full((num, size), NOTHING, dtype=torch.int64, device=device)
    first = torch.full_like(rank, NOTHING)
    numbers = torch.empty(num, 7, h, w, device=device)
    indices = torch.empty(num, 3 if parts > 1 else 2, h, w, dtype=torch.int64, device=device)
    tokens = torch.empty(num, channels, h, w, device=device)
    minima = (batch.table, *views, front, rank, first)
    rules = {"OFFSET": batch.offset, "CELL": batch.cell, "PARTS": parts, "enable_fp_fusion": False}
    if batch.max_blocks:
        for number in range(3):
            kernels.scan[batch.max_blocks * parts, num_views, num_sessions](
                *minima,
                *(First(front, rank) if other is None else other),
                num_views,
                h,
                w,
                batch.width,
                PASS=number,
                SECOND=other is not None,
                WITNESS=mode == "witnesses",
                **rules,
            )
    kernels.gather[triton.cdiv(size, TILE), num](
        *minima,
        numbers,
        indices,
        tokens,
        num_views,
        h,
        w,
        batch.width,
        INT8=batch.is_int8,
        CHANNELS=channels,
        PADDED=triton.next_power_of_2(max(channels, 1)),
        TILE=TILE,
        **rules,
    )
    coverage, quality, depth = (numbers[:, i] for i in range(3))
    winner, source = indices[:, 0], indices[:, 1]
    part = indices[:, 2] if parts > 1 else None
    offset, span = numbers[:, 3:5], numbers[:, 5:7]
    seen = Surface(winner, source, coverage, depth, quality, offset, span, tokens, part)
    return seen, First(front, rank)


def _column(points: Points, name: str) -> Tensor:
    """The column, or something to point to where a session has none."""
    for table in (points.blocks, points.rows, points.frames):
        if name in table and len(table):
            return table[name]
    return torch.ones(16, dtype=torch.float64, device=points["depth"].device)
