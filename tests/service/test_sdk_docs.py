"""docs/sdk.md runs as it stands, but for the server's address."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from fake_worker import FakeWorker, working
from PIL import Image
from snippets import ADDRESS, run

from service.settings import Settings

PAGE = (Path(__file__).parents[2] / "docs" / "sdk.md").read_text()
SNIPPETS = dict(re.findall(r"## ([^\n]*)\n(?:(?!```).)*```python\n(.*?)```", PAGE, re.S))
NEEDS_A_REAL_WORKER = {  # tests/test_edge.py
    "What if: fork, rewind, snapshot, observe",
    "Keep it, move it, share it",
}


def test_every_snippet_is_found() -> None:
    assert len(SNIPPETS) == PAGE.count("```python") and NEEDS_A_REAL_WORKER <= set(SNIPPETS)


@pytest.mark.parametrize("title", sorted(set(SNIPPETS) - NEEDS_A_REAL_WORKER))
async def test_a_snippet(title: str, server_url: str, settings: Settings, tmp_path: Path) -> None:
    folder = tmp_path / "somewhere"
    folder.mkdir()
    Image.linear_gradient("L").convert("RGB").save(folder / "photo.jpg")
    async with working(FakeWorker(settings)):
        code = SNIPPETS[title].replace(ADDRESS, server_url)
        output = await run([sys.executable, "-c", code], folder)
    assert output
