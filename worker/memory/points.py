"""The points behind a latent memory: cells of remembered frames, in compact columns, ordered by id.

A point is a cell and a depth in the frame that saw it; position, size and direction follow from
that frame's camera, which is stored once per frame. With its token (bfloat16, or int8 with a scale
of its own), quality, recession, strikes and the depths of its cell's sixteen parts relative to its
own a point of C channels takes 2 C + 25 bytes (or C + 29).

Rows are only appended, so row order is id order and ties break the same way after any history. Rows
of one frame lie together, in blocks with bounds, so that a reader skips what no camera sees. A
removed row keeps its place with a NaN depth, which nobody sees, until dead rows outnumber live ones
and all rows are closed up: every write costs what it changes, amortised, never a copy of the
memory.

Ids are the number of the frame times h * w plus the cell: ascending, never reused, never stored.

Axis legend: n points, f frames, b blocks, C channels, h w the latent grid.
"""

from __future__ import annotations

from math import isqrt
from typing import Literal

import torch
from torch import Tensor

from worker.geometry import Cameras
from worker.memory.base import Delta
from worker.memory.table import Table
from worker.projection import BLOCK, SLANT_STEPS, FramePatches, pitches, quality_of

TokenFormat = Literal["bfloat16", "int8"]
MIN_DEAD = 1024
CHUNK = 1 << 16  # points whose bounds are computed at once
ROUNDING = 1e-6  # bounds are widened by this share, as they are stored in float32


def stretch(slant: Tensor) -> Tensor:
    """float32, the longest side of a patch with this stored recession, in cells."""
    return (1 + (slant.float() / SLANT_STEPS).square()).sqrt()


class Points:
    """Row numbers are valid until the next change."""

    def __init__(
        self,
        channels: int,
        grid: tuple[int, int],
        device: str,
        token_format: TokenFormat = "bfloat16",
        offset: float = 0.5,  # of a cell's ray: 0.5 = through its centre
        num_parts: int = 0,  # of a cell whose depth is known: NUM_PARTS or none
    ) -> None:
        self.grid, self.offset, self.num_parts = grid, offset, num_parts
        self.num_cells = grid[0] * grid[1]
        self.token_format = token_format

        def column(dtype: torch.dtype, *shape: int) -> Tensor:
            return torch.zeros(0, *shape, dtype=dtype, device=device)

        columns = {
            "cell": column(torch.int16 if self.num_cells <= 2**15 else torch.int32),
            "depth": column(torch.float32),
            "slant": column(torch.uint8),
            "quality": column(torch.uint8),
            "strikes": column(torch.uint8),
            "relief": column(torch.int8, num_parts),
            "tokens": column(getattr(torch, token_format), channels),
        }
        if token_format == "int8":
            columns["scale"] = column(torch.float32)
        self.rows = Table(columns)
        self.frames = Table(
            {
                "serial": column(torch.int64),
                "source": column(torch.int32),
                "intrinsics": column(torch.float64, 4),
                "world_from_camera": column(torch.float64, 4, 4),
                "start": column(torch.int64),
                "num_rows": column(torch.int64),
                "num_live": column(torch.int64),
            }
        )
        self.blocks = Table(
            {
                "start": column(torch.int64),
                "length": column(torch.int32),
                "frame": column(torch.int32),
                "low": column(torch.float32, 3),
                "high": column(torch.float32, 3),
            }
        )
        self._num_dead = 0
        self.next_serial = 0

    def __len__(self) -> int:
        """Live points."""
        return len(self.rows) - self._num_dead

    def __getitem__(self, name: str) -> Tensor:
        """A column with one entry per row, dead rows included; a view, not to be written to."""
        return self.rows[name]

    @property
    def alive(self) -> Tensor:
        """(rows,) bool."""
        return ~self.rows["depth"].isnan()

    @property
    def num_bytes(self) -> int:
        """Of the live points and the tables that place them, without spare capacity."""
        return len(self) * self.rows.bytes_per_row + self.table_bytes

    @property
    def table_bytes(self) -> int:
        """Of the cameras of frames with live points and their blocks' bounds, once closed up: the
        same after any history, so that a restored memory gives up the same points.
        """
        live = self.frames["num_live"]
        counts: list[int] = torch.stack([live.sign(), -(-live // BLOCK)]).sum(1).tolist()
        num_frames, num_blocks = counts
        return num_frames * self.frames.bytes_per_row + num_blocks * self.blocks.bytes_per_row

    @property
    def bytes_per_frame(self) -> int:
        """At most, besides its points."""
        return self.frames.bytes_per_row + -(-self.num_cells // BLOCK) * self.blocks.bytes_per_row

    @property
    def held_bytes(self) -> int:
        """Really allocated, with spare capacity."""
        return sum(table.held_bytes for table in (self.rows, self.frames, self.blocks))

    @property
    def cameras(self) -> Cameras:
        """(f,) of the remembered frames, at the grid's size."""
        views = (self.frames["intrinsics"], self.frames["world_from_camera"])
        return Cameras(*views, *self.grid)

    @property
    def num_sources(self) -> int:
        return len(self.frames["source"][self.frames["num_live"] > 0].unique())

    def patches(self, rows: Tensor | None = None, in_parts: bool = False) -> FramePatches:
        """These rows, or all, as cameras see them; in parts, those of a row follow one another."""
        if rows is None:
            count = self.frames["num_rows"]
            frame = torch.repeat_interleave(count, output_size=len(self.rows))
            cell, depth, slant = (self.rows[name] for name in ("cell", "depth", "slant"))
        else:
            frame = self.frame_of(rows)
            cell, depth, slant = (self.rows[name][rows] for name in ("cell", "depth", "slant"))
        whole = FramePatches(cell, depth, slant, frame, self.cameras, self.offset)
        if not in_parts:
            return whole
        relief = self.rows["relief"]
        return whole.in_parts(relief if rows is None else relief[rows])

    def frame_of(self, rows: Tensor) -> Tensor:
        """int64 index into `frames` of each row."""
        return torch.searchsorted(self.frames["start"], rows, right=True) - 1

    def ids_of(self, rows: Tensor) -> Tensor:
        serial = self.frames["serial"][self.frame_of(rows)]
        return serial * self.num_cells + self.rows["cell"][rows].long()

    def size_of(self, rows: Tensor) -> Tensor:
        """float32 metres per cell, across the ray that saw each point."""
        return self.rows["depth"][rows] * pitches(self.cameras)[self.frame_of(rows)]

    def tokens_of(self, rows: Tensor) -> Tensor:
        """(m, C) float32."""
        tokens = self.rows["tokens"][rows].float()
        return tokens * self.rows["scale"][rows, None] if "scale" in self.rows else tokens

    def live(self) -> dict[str, Tensor]:
        """The live points: ids, world positions (float64), sources, qualities and all columns."""
        rows = self.alive.nonzero()[:, 0]
        found = {name: self.rows[name][rows] for name in self.rows.names}
        source = self.frames["source"][self.frame_of(rows)]
        positions = self.patches(rows).positions()
        found |= {"ids": self.ids_of(rows), "positions": positions, "source": source}
        return found | {"quality": quality_of(found["quality"])}

    def append(self, delta: Delta) -> None:
        """Add a delta's points; its frames must be new."""
        if len(delta.serials) and int(delta.serials[0]) < self.next_serial:
            raise ValueError(
                f"frames must be numbered from {self.next_serial}; got {int(delta.serials[0])}: "
                "was this delta applied twice?"
            )
        if len(delta.serials):
            self.next_serial = int(delta.serials[-1]) + 1
        if not len(delta.ids):
            return
        serial = torch.div(delta.ids, self.num_cells, rounding_mode="floor")
        serials, count = torch.unique_consecutive(serial, return_counts=True)
        which = torch.searchsorted(delta.serials, serials).clamp(max=len(delta.serials) - 1)
        if not torch.equal(delta.serials[which], serials):
            raise ValueError(
                f"the delta's ids name frames {serials.tolist()} that it does not list"
            )
        first_row, first_frame = len(self.rows), len(self.frames)
        added = {
            "cell": delta.ids % self.num_cells,
            "depth": delta.depth,
            "slant": delta.slant,
            "quality": delta.quality,
            "strikes": torch.zeros_like(delta.quality),
            "relief": in_full(delta.relief, self.num_parts),
            "tokens": delta.tokens,
        }
        if self.token_format == "int8":
            added["tokens"], added["scale"] = quantised(delta.tokens)
        self.rows.append(added)
        self.frames.append(
            {
                "serial": serials,
                "source": delta.source[which],
                "intrinsics": delta.intrinsics[which],
                "world_from_camera": delta.world_from_camera[which],
                "start": first_row + count.cumsum(0) - count,
                "num_rows": count,
                "num_live": count,
            }
        )
        self._add_blocks(first_frame, first_row)

    def remove(self, ids: Tensor) -> None:
        if not len(ids):
            return
        rows = self.rows_of(ids)
        self.rows.put("depth", rows, torch.nan)
        gone = torch.bincount(self.frame_of(rows), minlength=len(self.frames))
        self.frames.put("num_live", slice(None), self.frames["num_live"] - gone)
        self._num_dead += len(rows)
        if self._num_dead > max(MIN_DEAD, len(self)):
            self._compact()

    def strike(self, ids: Tensor, quality: Tensor) -> None:
        """Note that these points were contradicted once, and what they are worth now."""
        if len(ids):
            rows = self.rows_of(ids)
            self.rows.put("quality", rows, quality)
            self.rows.put("strikes", rows, 1)

    def rows_of(self, ids: Tensor) -> Tensor:
        """(m,) rows of these live ids; an unknown id is a ValueError."""
        if not len(ids):
            return ids
        if not len(self.rows):
            raise ValueError(f"{len(ids)} ids are not in the memory, which is empty")
        serial = torch.div(ids, self.num_cells, rounding_mode="floor")
        frame = torch.searchsorted(self.frames["serial"], serial).clamp(max=len(self.frames) - 1)
        low = self.frames["start"][frame]
        high = low + self.frames["num_rows"][frame]
        last, cell, column = high - 1, ids % self.num_cells, self.rows["cell"]
        for _ in range(self.num_cells.bit_length()):  # cells ascend within a frame
            middle = (low + high) // 2
            before = (column[middle.clamp(max=len(column) - 1)].long() < cell) & (low < high)
            low, high = torch.where(before, middle + 1, low), torch.where(before, high, middle)
        rows = torch.minimum(low, last)
        known = (self.ids_of(rows) == ids) & ~self.rows["depth"][rows].isnan()
        if not bool(known.all()):
            raise ValueError(f"ids not in the memory: {ids[~known][:5].tolist()}")
        return rows

    def _add_blocks(self, first_frame: int, first_row: int) -> None:
        """Blocks and bounds of the rows from `first_row` on, which belong to these frames."""
        count = self.frames["num_rows"][first_frame:]
        blocks = (count + BLOCK - 1) // BLOCK
        frame = torch.repeat_interleave(blocks)
        number = torch.arange(len(frame), device=frame.device)
        number = number - (blocks.cumsum(0) - blocks)[frame]
        start = self.frames["start"][first_frame:][frame] + number * BLOCK
        size = torch.minimum(count[frame] - number * BLOCK, count.new_tensor(BLOCK))
        frame = frame + first_frame
        block = torch.repeat_interleave(size)
        low = torch.full((len(frame), 3), torch.inf, dtype=torch.float64, device=frame.device)
        high = -low
        for rows in torch.arange(first_row, len(self.rows), device=frame.device).split(CHUNK):
            eye = self.frames["world_from_camera"][self.frame_of(rows), None, :3, 3]
            apart = self.patches(rows).positions()[:, None] - eye
            if self.num_parts:
                parts = self.patches(rows, in_parts=True).positions()
                apart = torch.cat([apart, parts.unflatten(0, (-1, self.num_parts)) - eye], dim=1)
            into = block[rows - first_row, None].expand(-1, 3)
            low.scatter_reduce_(0, into, apart.amin(1), "amin")
            high.scatter_reduce_(0, into, apart.amax(1), "amax")
        low, high = (low - ROUNDING * low.abs()).float(), (high + ROUNDING * high.abs()).float()
        self.blocks.append(
            {"start": start, "length": size, "frame": frame, "low": low, "high": high}
        )

    def _compact(self) -> None:
        alive = self.alive.nonzero()[:, 0]
        self.rows.keep(alive)
        self._num_dead = 0
        kept = self.frames["num_live"].nonzero()[:, 0]
        self.frames.keep(kept)
        count = self.frames["num_live"]
        self.frames.put("num_rows", slice(None), count)
        self.frames.put("start", slice(None), count.cumsum(0) - count)
        self.blocks.clear()
        self._add_blocks(0, 0)


def in_full(relief: Tensor, num_parts: int) -> Tensor:
    """(n, num_parts): larger parts for all of theirs; what is unknown is flat, as 0 says."""
    side, wanted = isqrt(relief.shape[1]), isqrt(num_parts)
    if relief.shape[1] == num_parts:
        return relief
    if not side or side**2 != relief.shape[1] or wanted % side:
        return relief.new_zeros(len(relief), num_parts)
    square = relief.view(-1, side, side)
    for axis in (1, 2):
        square = square.repeat_interleave(wanted // side, axis)
    return square.flatten(1)


def quantised(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """(n, C) int8 and (n,) float32 scale: the largest value of each token becomes 127."""
    values = tokens.float()
    scale = values.abs().amax(dim=1) / 127
    steps = values / scale.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    return steps.round().clamp(-127, 127).to(torch.int8), scale
