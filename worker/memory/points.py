"""The rows behind a latent memory: growable buffers, ordered by id, with tombstones.

Rows are only appended, so row order is id order and ties break the same way after any history. A
removed row keeps its place with a NaN position, which no camera sees, until dead rows outnumber
live ones and all rows are compacted: every write costs what it adds, amortised, never a copy of the
memory.
"""

from __future__ import annotations

import torch
from torch import Tensor

COLUMNS = ("ids", "positions", "tokens", "quality", "size", "slant", "source")
MIN_ROWS = 1024


def extent(size: Tensor, slant: Tensor) -> Tensor:
    """(...) metres: the longest side of a patch this wide that recedes by `slant` (..., 3)."""
    return (size**2 + slant.float().square().sum(-1)).sqrt()


class Points:
    """Columns of equal length. Row numbers are valid until the next change."""

    def __init__(self, channels: int, device: str) -> None:
        self._columns = {
            "ids": torch.zeros(0, dtype=torch.int64, device=device),
            "positions": torch.zeros(0, 3, device=device),
            "tokens": torch.zeros(0, channels, dtype=torch.bfloat16, device=device),
            "quality": torch.zeros(0, device=device),
            "size": torch.zeros(0, device=device),
            "slant": torch.zeros(0, 3, dtype=torch.float16, device=device),
            "source": torch.zeros(0, dtype=torch.int32, device=device),
        }
        self._num_rows = 0
        self._num_dead = 0
        self.next_id = 0

    def __len__(self) -> int:
        """Live points."""
        return self._num_rows - self._num_dead

    def __getitem__(self, name: str) -> Tensor:
        """A column with one entry per row, dead rows included; a view, not to be written to."""
        return self._columns[name][: self._num_rows]

    @property
    def alive(self) -> Tensor:
        """(rows,) bool."""
        return ~self["positions"][:, 0].isnan()

    @property
    def extent(self) -> Tensor:
        """(rows,) float32 metres: the longest side of the surface that each point stands for."""
        return extent(self["size"], self["slant"])

    @property
    def bytes_per_point(self) -> int:
        return sum(column[:1].nbytes for column in self._columns.values())

    def live(self) -> dict[str, Tensor]:
        """Copies of the live rows of every column."""
        alive = self.alive
        return {name: self[name][alive] for name in COLUMNS}

    def append(self, added: dict[str, Tensor]) -> None:
        """Add rows; their ids must be ascending and new."""
        count = len(added["ids"])
        if not count:
            return
        if int(added["ids"][0]) < self.next_id:
            raise ValueError(
                f"ids must start at {self.next_id}; got {int(added['ids'][0])}: "
                "was this delta applied twice?"
            )
        self._reserve(self._num_rows + count)
        for name in COLUMNS:
            self._columns[name][self._num_rows : self._num_rows + count] = added[name]
        self._num_rows += count
        self.next_id = int(added["ids"][-1]) + 1

    def remove(self, ids: Tensor) -> None:
        rows = self.rows_of(ids)
        self._columns["positions"][rows] = torch.nan
        self._num_dead += len(rows)
        if self._num_dead > max(MIN_ROWS, len(self)):
            self._compact()

    def requalify(self, ids: Tensor, quality: Tensor) -> None:
        self._columns["quality"][self.rows_of(ids)] = quality

    def rows_of(self, ids: Tensor) -> Tensor:
        """(m,) rows of these live ids; an unknown id is a ValueError."""
        if not len(ids):
            return ids
        if not self._num_rows:
            raise ValueError(f"{len(ids)} ids are not in the memory, which is empty")
        held = self["ids"]
        rows = torch.searchsorted(held, ids).clamp(max=self._num_rows - 1)
        unknown = (held[rows] != ids) | self["positions"][rows, 0].isnan()
        if bool(unknown.any()):
            raise ValueError(f"ids not in the memory: {ids[unknown][:5].tolist()}")
        return rows

    def _reserve(self, rows: int) -> None:
        if rows <= len(self._columns["ids"]):
            return
        capacity = max(MIN_ROWS, rows, 2 * len(self._columns["ids"]))
        for name, column in self._columns.items():
            grown = column.new_empty(capacity, *column.shape[1:])
            grown[: self._num_rows] = column[: self._num_rows]
            self._columns[name] = grown

    def _compact(self) -> None:
        kept = self.live()
        self._num_rows, self._num_dead = len(kept["ids"]), 0
        for name in COLUMNS:
            self._columns[name][: self._num_rows] = kept[name]
