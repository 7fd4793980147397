"""What takes minutes to make from walks, made once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from safetensors.torch import load_file, save_file

T = TypeVar("T")


def kept(path: Path, kind: type[T], make: Callable[[], T]) -> T:
    """The dataclass of tensors in a file, made and written if there is none."""
    if not path.exists():
        partial = path.with_suffix(".partial")
        save_file({name: part.contiguous() for name, part in vars(make()).items()}, partial)
        partial.rename(path)
    return kind(**load_file(path))
