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

from service.telemetry import configure_logging


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
