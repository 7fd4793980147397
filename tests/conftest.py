"""Shared fixtures: a real Valkey for the whole test session, an empty store and control plane for
each test.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import structlog
from hypothesis import settings as hypothesis
from redis import Redis
from structlog.testing import LogCapture

from service.control import keys
from service.control.plane import ControlPlane
from service.local.embedded import EmbeddedValkey
from service.settings import Settings

# The same cases in every run, so that a change fails for what it changed; with TEST_CASES (how
# many, where a test has a use for it) and in `make fuzz` they are drawn anew. How long a case takes
# says more about the machine than about us.
hypothesis.register_profile("same", derandomize=True, deadline=None)
hypothesis.register_profile("anew", deadline=None)
hypothesis.load_profile("anew" if "TEST_CASES" in os.environ else "same")


@pytest.fixture(scope="session")
def valkey_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Valkey of this test session alone, on a unix socket."""
    server = EmbeddedValkey(tmp_path_factory.mktemp("valkey"))
    asyncio.run(server.start())
    yield server.url
    asyncio.run(server.stop())


@pytest.fixture
def logs_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """What modules log from now on. Not by structlog's own capture: it misses loggers that an
    earlier test has configured and used.
    """

    def capture(*modules: ModuleType) -> list[Any]:
        found = LogCapture()
        for module in modules:
            monkeypatch.setattr(module, "LOG", structlog.wrap_logger(None, processors=[found]))
        return found.entries

    return capture


@pytest.fixture
def fails_once(monkeypatch: pytest.MonkeyPatch) -> Callable[[object, str, Exception], None]:
    """Lets a function raise this the first time."""

    def fail(where: object, name: str, error: Exception) -> None:
        real, errors = getattr(where, name), [error]

        def failing(*args: Any, **kwargs: Any) -> Any:
            if errors:
                raise errors.pop()
            return real(*args, **kwargs)

        monkeypatch.setattr(where, name, failing)

    return fail


@pytest.fixture
def no_head_was_due(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what asks for a head writes one: a session's turn, one walk in sixty-four, would name
    the very segments that a test puts in doubt.
    """
    monkeypatch.setattr(keys, "HEAD_EVERY", 1 << 32)


@pytest.fixture
def settings(valkey_url: str, tmp_path: Path) -> Settings:
    """Small frames, short times; an empty Valkey and a store of its own."""
    with Redis.from_url(valkey_url) as redis:
        redis.flushall()
    return Settings(
        redis_url=valkey_url,
        data_dir=tmp_path,
        grpc_port=0,
        frame_width=64,
        frame_height=32,
        lease_s=1.0,
        linger_s=0.2,
        frames_kept=64,
    )


@pytest.fixture
async def control(settings: Settings) -> AsyncIterator[ControlPlane]:
    plane = await ControlPlane.open(settings)
    yield plane
    await plane.close()
