"""The README's snippets run as they stand, but for the server's address."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest
from fake_worker import FakeWorker, working
from PIL import Image
from snippets import ADDRESS, GRPC_ADDRESS, run

from service.settings import Settings

README = (Path(__file__).parents[2] / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.S)
CURL = [block for block in re.findall(r"```bash\n(.*?)```", README, re.S) if "curl" in block]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Somebody's folder with a photograph in it."""
    place = tmp_path / "somewhere"
    place.mkdir()
    Image.linear_gradient("L").convert("RGB").save(place / "photo.jpg")
    return place


@pytest.mark.parametrize("snippet", PYTHON, ids=["path", "live", "grpc"])
async def test_python(
    snippet: str, server_url: str, grpc_address: str, settings: Settings, folder: Path
) -> None:
    here = snippet.replace(ADDRESS, server_url).replace(GRPC_ADDRESS, grpc_address)
    assert here != snippet
    async with working(FakeWorker(settings)):
        output = await run([sys.executable, "-c", here], folder)
    frames = [line for line in output.splitlines() if line[0].isdigit()]
    assert len(frames) >= 10


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
async def test_curl(server_url: str, settings: Settings, folder: Path) -> None:
    assert len(CURL) == 1
    script = "set -eu\n" + CURL[0].replace(ADDRESS, server_url)
    async with working(FakeWorker(settings)):
        output = await run(["bash", "-c", script], folder)
    assert '"num_points"' in output
    assert (folder / "walk.mp4").stat().st_size > 500
    with Image.open(folder / "frame.webp") as frame:
        assert frame.size == (settings.frame_width, settings.frame_height)
