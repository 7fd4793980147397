"""What can be seen of a world's page without scrolling, measured in a browser if there is one."""

from __future__ import annotations

import asyncio
import html
import json
import re
import shutil
from pathlib import Path

import pytest
from viewer_page import VIEWER

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
MEASURE = """
const { document: page, innerHeight } = this.contentWindow;
const below = [...page.querySelectorAll(".stage, #moment, .buttons > :not([hidden])")]
  .filter((one) => one.getBoundingClientRect().bottom > innerHeight);
document.title = JSON.stringify(below.map((one) => one.id));
"""


@pytest.mark.skipif(not BROWSER, reason="no browser here")
@pytest.mark.parametrize("size", [(390, 844), (390, 664), (844, 390), (1280, 800)])
async def test_a_world_and_what_can_be_done_there_need_no_scrolling(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    page = re.sub("<script.*?</script>", "", (VIEWER / "index.html").read_text())
    for shown in ('main id="world"', 'form id="key"', 'input type="range" id="moment"'):
        page = re.sub(f"(<{shown}.*?) hidden>", r"\1>", page)
    page = page.replace('id="name">', 'id="name">Library')
    page = page.replace('id="facts">', 'id="facts">28 Nov 2026, 23:49 · 21 frames\ns1a2')
    frame = '<iframe width="{}" height="{}" srcdoc="{}" onload="{}"></iframe>'
    harness = tmp_path / "harness.html"
    harness.write_text(frame.format(*size, html.escape(page), html.escape(MEASURE)))
    shutil.copytree(VIEWER, tmp_path / "viewer", ignore=shutil.ignore_patterns("samples"))
    process = await asyncio.create_subprocess_exec(
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom",
        f"--user-data-dir={tmp_path / 'profile'}", harness.as_uri(),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    words, _ = await asyncio.wait_for(process.communicate(), 60)
    title = re.search("<title>(.*?)</title>", words.decode())
    assert title and json.loads(html.unescape(title[1])) == []
