"""Uploads wait on disk until it is their turn to be decoded."""

from __future__ import annotations

import asyncio
import hashlib
import io
from dataclasses import replace

from fastapi import UploadFile
from uploads_made import png

from service.gateway import Gateway
from service.rest.forms import DIGESTED_BYTES, SessionForm, observe, source_of


async def test_a_file_is_whole_in_memory_only_in_its_turn(gateway: Gateway) -> None:
    gateway = replace(gateway, heavy=asyncio.Semaphore(1))
    reads: list[tuple[int, bool]] = []

    class Watched(UploadFile):
        async def read(self, size: int = -1) -> bytes:
            reads.append((size, gateway.heavy.locked()))
            return await super().read(size)

    data, empty = png(), hashlib.sha256().hexdigest()
    form = SessionForm(image=Watched(io.BytesIO(data), size=len(data)))
    source = source_of(form, gateway)
    assert await source.digest() == f"{hashlib.sha256(data).hexdigest()}.{empty}.{empty}"
    assert (await observe(source, form, gateway)).upload_size == (96, 64)
    assert reads == [(DIGESTED_BYTES, False), (DIGESTED_BYTES, False), (-1, True)]
