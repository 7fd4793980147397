"""Worlds as files, to and from the service, whatever their size: never whole in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx

CHUNK = 1 << 20  # bytes
MEDIA_TYPE = "application/x-tar"


@dataclass(frozen=True)
class Upload:
    """An exported world as a request's body, read anew each time the request is sent."""

    path: Path

    @property
    def headers(self) -> dict[str, str]:
        return {"Content-Type": MEDIA_TYPE, "Content-Length": str(self.path.stat().st_size)}

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with self.path.open("rb") as file:
            while chunk := await asyncio.to_thread(file.read, CHUNK):
                yield chunk


async def save(answer: httpx.Response, path: Path) -> None:
    """An answer's body as a file, which is whole once it has its name."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("wb") as file:
            async for chunk in answer.aiter_bytes(CHUNK):
                await asyncio.to_thread(file.write, chunk)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
