"""The files that commands write."""

from __future__ import annotations

from pathlib import Path

from service.errors import InvalidRequest


def make_room(file: Path) -> None:
    """Make the folder of a file that a command is about to write: before its work, which may take
    minutes. Raises InvalidRequest if the file is a folder, OSError if there can be none.
    """
    if file.is_dir():
        raise InvalidRequest(f"{file} is a folder: name a file in it, as {file / 'NAME'}")
    file.parent.mkdir(parents=True, exist_ok=True)
