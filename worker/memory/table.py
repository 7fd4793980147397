"""Columns of equal length that grow by doubling: appending costs what is added, amortised.

Slices of the columns are kept until the number of rows changes, as compiled kernels ask for all of
them with every read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

MIN_ROWS = 1024


class Table:
    def __init__(self, columns: Mapping[str, Tensor]) -> None:  # empty ones of the right type
        self._columns = dict(columns)
        self._num_rows = 0
        self._slices: dict[str, Tensor] = {}
        self._arrays: dict[str, NDArray[Any]] = {}

    def __len__(self) -> int:
        return self._num_rows

    def __getitem__(self, name: str) -> Tensor:
        """A column; a view, not to be written to."""
        if name not in self._slices:
            self._slices[name] = self._columns[name][: self._num_rows]
        return self._slices[name]

    def array(self, name: str) -> NDArray[Any]:
        """A column of a CPU's table as numpy sees it, bfloat16 as bits."""
        if name not in self._arrays:
            column = self[name]
            bits = column.view(torch.int16) if column.dtype == torch.bfloat16 else column
            self._arrays[name] = bits.numpy()
        return self._arrays[name]

    def __getstate__(self) -> None:
        """Refused: arrays of a copy would not see what is written to its columns, and the compiled
        loops would read beyond them.
        """
        raise TypeError("a memory can't be copied or pickled: apply its deltas to an empty one")

    def __contains__(self, name: str) -> bool:
        return name in self._columns

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._columns)

    @property
    def bytes_per_row(self) -> int:
        columns = self._columns.values()
        return sum(column.element_size() * column.shape[1:].numel() for column in columns)

    @property
    def held_bytes(self) -> int:
        """Allocated, with spare capacity."""
        return sum(column.nbytes for column in self._columns.values())

    def append(self, added: Mapping[str, Tensor]) -> None:
        count = len(next(iter(added.values())))
        self._reserve(self._num_rows + count)
        for name, column in self._columns.items():
            column[self._num_rows : self._num_rows + count] = added[name]
        self._resize(self._num_rows + count)

    def put(self, name: str, rows: Tensor | slice, values: Tensor | float) -> None:
        self[name][rows] = values

    def keep(self, rows: Tensor) -> None:
        """Only these rows, in ascending order, closed up."""
        for name, column in self._columns.items():
            column[: len(rows)] = self[name][rows]
        self._resize(len(rows))

    def clear(self) -> None:
        self._resize(0)

    def _resize(self, rows: int) -> None:
        self._num_rows = rows
        self._slices.clear()
        self._arrays.clear()

    def _reserve(self, rows: int) -> None:
        capacity = len(next(iter(self._columns.values())))
        if rows <= capacity:
            return
        capacity = max(MIN_ROWS, rows, 2 * capacity)
        for name, column in self._columns.items():
            grown = column.new_empty(capacity, *column.shape[1:])
            grown[: self._num_rows] = column[: self._num_rows]
            self._columns[name] = grown
