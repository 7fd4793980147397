"""What goes to the log."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Iterator

import httpx
import pytest
import structlog
from starlette.types import Message, Receive, Scope, Send
from structlog.testing import LogCapture

from service.telemetry import Metrics, Telemetry, configure_logging


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, as it was before afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield root
    root.handlers = handlers
    root.setLevel(level)


def test_lines_go_to_what_is_stderr_now(
    root: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", before)
    configure_logging("info")
    root.info("one")
    told = before.getvalue()
    before.close()
    monkeypatch.setattr(sys, "stderr", after)
    root.info("two")
    assert [json.loads(text)["event"] for text in (told, after.getvalue())] == ["one", "two"]


def test_a_path_moves_no_cursor_and_makes_no_line(
    root: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a terminal, what a client sent is shown as text, whatever it holds."""
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    configure_logging("info")
    structlog.get_logger("mirage.access").info("request", path="/\x1b[2J")
    structlog.get_logger("mirage.access").info("request", path="/\nforged")
    assert "\x1b[2J" not in terminal.getvalue()
    assert terminal.getvalue().count("\n") == 2 and "forged" in terminal.getvalue()


def test_addresses_of_webhooks_are_not_told_by_the_client_that_calls_them(
    root: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = io.StringIO()
    monkeypatch.setattr(sys, "stderr", told)
    configure_logging("info")
    with httpx.Client(transport=httpx.MockTransport(lambda _: httpx.Response(204))) as client:
        client.post("https://hooks.example/?token=swordfish")
    assert told.getvalue() == ""


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (["accept"], {"status": 101}),  # and the client left
        (["accept", "close"], {"status": 101, "close_code": 4401}),
        (["http.response.start"], {"status": 401}),
    ],
)
async def test_the_access_log_says_how_a_websocket_ended(
    monkeypatch: pytest.MonkeyPatch, said: list[str], told: dict[str, int]
) -> None:
    async def app(_: Scope, __: Receive, send: Send) -> None:
        for kind in said:
            await send({"type": f"websocket.{kind}", "status": 401, "code": 4401})

    async def ignore(_: Message) -> None:
        pass

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    logs, telemetry = LogCapture(), Telemetry(app, Metrics())
    monkeypatch.setattr(telemetry, "_log", structlog.wrap_logger(None, processors=[logs]))
    await telemetry({"type": "websocket", "path": "/", "headers": []}, receive, ignore)
    (line,) = logs.entries
    assert {name: line[name] for name in ("status", "close_code") if name in line} == told
