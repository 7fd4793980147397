"""What goes to the log."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Iterator

import pytest

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
