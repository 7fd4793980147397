"""The curl examples of docs/api.md run as they stand, but for the server's address."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from fake_worker import FakeWorker, working
from PIL import Image
from snippets import ADDRESS, run

from bench.servers import service
from service.settings import Settings

PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
OBSERVATION, VIDEOS, EXPORT = re.findall(r"```bash\n(.*?)```", PAGE, re.S)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A robot's folder."""
    place = tmp_path / "somewhere"
    place.mkdir()
    picture = Image.linear_gradient("L").convert("RGB")
    picture.save(place / "photo.jpg")
    picture.save(place / "view.jpg")
    Image.fromarray(np.full((256, 256), 2500, np.uint16)).save(place / "depth.png")
    return place


async def ran(script: str, server_url: str, settings: Settings, folder: Path) -> str:
    async with working(FakeWorker(settings)):
        text = "set -eu\n" + script.replace(ADDRESS, server_url)
        return await run(["bash", "-c", text], folder)


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
async def test_an_observation(server_url: str, settings: Settings, folder: Path) -> None:
    output = await ran(OBSERVATION, server_url, settings, folder)
    assert json.loads(output)["kind"] == "observe"


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
async def test_videos(server_url: str, settings: Settings, folder: Path) -> None:
    output = await ran(VIDEOS, server_url, settings, folder)
    assert json.loads(output)["object"] == "video"
    assert (folder / "video.mp4").stat().st_size > 500


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
async def test_an_export_and_its_import(tmp_path: Path, folder: Path) -> None:
    async with service(tmp_path / "data", max_batch=1) as server:  # with a real worker
        output = await run(
            ["bash", "-c", "set -eu\n" + EXPORT.replace(ADDRESS, server.url)], folder
        )
    assert json.loads(output)["num_frames"] == 1
