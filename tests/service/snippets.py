"""Snippets of the docs: the addresses in them, and how they run."""

from __future__ import annotations

import asyncio
from pathlib import Path

ADDRESS, GRPC_ADDRESS = "http://127.0.0.1:8000", "127.0.0.1:8001"


async def run(command: list[str], folder: Path) -> str:
    """Its output; fails with what it wrote if it does not end well."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, cwd=folder, stdout=pipe, stderr=pipe)
    output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return output.decode()
