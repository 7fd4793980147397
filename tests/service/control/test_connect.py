"""A Redis that goes away is waited for as long as the documentation says, whatever was asked."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from redis.exceptions import ConnectionError

from service.control.connect import connect
from service.local.embedded import EmbeddedValkey, free_port


async def test_a_lost_server_is_waited_for_once_not_for_each_attempt_anew(tmp_path: Path) -> None:
    valkey = EmbeddedValkey(tmp_path, free_port())
    await valkey.start()
    async with connect(valkey.url) as redis:
        await redis.ping()  # a connection that is there already breaks
        await valkey.stop()
        started = time.monotonic()
        with pytest.raises(ConnectionError):
            await redis.pipeline().get("key").execute()
        assert 1 < time.monotonic() - started < 10


async def test_a_server_that_comes_back_answers_what_was_asked_meanwhile(tmp_path: Path) -> None:
    port = free_port()
    async with EmbeddedValkey(tmp_path, port) as url:
        redis = connect(url)
        await redis.set("key", "value")
    asked = asyncio.create_task(redis.pipeline().get("key").execute())
    async with redis, EmbeddedValkey(tmp_path, port):
        assert await asked == [b"value"]
