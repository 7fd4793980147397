"""What is said of a child process that ended."""

from __future__ import annotations

import signal
from pathlib import Path

LAST_LINES = 15


def obituary(name: str, code: int, log: Path, log_begin: int = 0) -> str:
    """How it ended, and the last lines that it printed to `log` behind `log_begin`."""
    how = signal.Signals(-code).name if code < 0 else code
    lines = log.read_bytes()[log_begin:].decode(errors="replace").splitlines()
    words = "\n  ".join(lines[-LAST_LINES:]) or "nothing"
    return f"the {name} ended with {how}; its last words ({log}):\n  {words}"
