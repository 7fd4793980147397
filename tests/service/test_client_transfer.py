"""Worlds that leave and come back as files, by the SDK."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from uploads_made import png

from bench.noop import start_worker
from service.client import AsyncMirage, AsyncWorld, ServiceError
from service.settings import Settings


class BreaksOnce(httpx.AsyncBaseTransport):
    """Loses the first answer to this path in the middle."""

    def __init__(self, path: str) -> None:
        self._real, self._path, self.sent = httpx.AsyncHTTPTransport(), path, 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        answer = await self._real.handle_async_request(request)
        if not request.url.path.endswith(self._path):
            return answer
        self.sent += 1
        if self.sent > 1:
            return answer
        return httpx.Response(answer.status_code, headers=answer.headers, stream=Cut(answer))

    async def aclose(self) -> None:
        await self._real.aclose()


class Cut(httpx.AsyncByteStream):
    """What has come of an answer when its connection breaks."""

    def __init__(self, answer: httpx.Response) -> None:
        self._answer = answer

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._answer.aiter_raw():
            yield chunk[: len(chunk) // 2]
            break
        await self._answer.aclose()
        raise httpx.ReadError("the connection was lost")


async def test_a_world_leaves_as_a_file_and_comes_back(
    server_url: str, settings: Settings, tmp_path: Path
) -> None:
    file = tmp_path / "attic.tar"
    leaving, coming = BreaksOnce("/export"), BreaksOnce(":import")
    worker = start_worker(settings)
    try:
        async with AsyncMirage(server_url, transport=leaving) as mirage:
            world = await mirage.create(png())
            await (await world.generate(actions=[{"yaw_deg": 20}])).wait()
            await world.snapshot("turned")
            assert [one["name"] for one in await world.snapshots()] == ["turned"]
            await world.export(file)
            assert await asyncio.to_thread(lambda: [*tmp_path.glob("*.partial")]) == []
            with pytest.raises(ServiceError, match="upturned"):
                await world.export(tmp_path / "nothing.tar", snapshot="upturned")
            assert not await asyncio.to_thread((tmp_path / "nothing.tar").exists)
            shown = (await world.frame(2)).image
        async with AsyncMirage(server_url, transport=coming) as mirage:
            back = await mirage.import_world(file)
            assert back.id != world.id
            assert (await back.frame(2)).image == shown
            assert len([one async for one in mirage.worlds()]) == 2  # one import, tried twice
    finally:
        worker.terminate()
        worker.join()
    assert leaving.sent == 3 and coming.sent == 2


async def test_a_world_that_is_no_file_is_told(tmp_path: Path) -> None:
    async with AsyncMirage("http://nowhere") as mirage:
        with pytest.raises(FileNotFoundError, match="lost"):
            await mirage.import_world(tmp_path / "lost.tar")


async def test_a_file_is_what_was_sent_however_it_came(tmp_path: Path) -> None:
    """A proxy may have compressed it on the way."""
    packed = httpx.Response(
        200, content=gzip.compress(b"a world"), headers={"Content-Encoding": "gzip"}
    )
    async with AsyncMirage("http://x", transport=httpx.MockTransport(lambda _: packed)) as mirage:
        await AsyncWorld(mirage, {"id": "s1"}).export(tmp_path / "world.tar")
    assert await asyncio.to_thread((tmp_path / "world.tar").read_bytes) == b"a world"
