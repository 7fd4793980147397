"""A World's export as one file, and as it is uploaded."""

from __future__ import annotations

from collections.abc import AsyncIterator

from service.control.plane import ControlPlane


async def exported(control: ControlPlane, session: str, snapshot: str | None = None) -> bytes:
    export = await control.exports.open(session, snapshot)
    data = b"".join([chunk async for chunk in export.chunks()])
    assert len(data) == export.num_bytes
    return data


async def in_pieces(data: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]
