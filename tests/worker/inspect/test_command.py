"""`mirage inspect`: from a session's id to pictures, in processes of its own."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench.noop import HEIGHT, WIDTH, noop_engine
from service.cli import main
from service.control.plane import ControlPlane
from service.control.requests import Generate
from service.control.sessions import IDENTITY, Intrinsics, NewSession
from service.settings import Settings
from service.store.segments import Upload
from worker.serving.faults import NoFaults
from worker.serving.loop import Worker
from worker.serving.runner import Encoding, Runner

LENS = Intrinsics(fx=50, fy=50, cx=32, cy=16, width=WIDTH, height=HEIGHT)


async def stored_session(control: ControlPlane, settings: Settings) -> str:
    """A picture and a walk of five frames, made by a real worker that then leaves."""
    image = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    session = await control.sessions.create(NewSession(seed=7, intrinsics=LENS), Upload(image))
    poses = [[*IDENTITY[:11], 0.05 * i, *IDENTITY[12:]] for i in range(5)]
    await control.requests.append(session.id, Generate(poses=poses))
    worker = Worker(control, settings, Runner(noop_engine(), Encoding()), NoFaults())
    task = asyncio.create_task(worker.run())
    while not await control.frames.read(session.id, after=4, wait_s=20):
        pass
    worker.stop()
    await task
    return session.id


async def test_a_stored_session_becomes_pictures(
    control: ControlPlane, settings: Settings, tmp_path: Path
) -> None:
    session = await stored_session(control, settings)
    environment = {
        "MIRAGE_REDIS_URL": settings.redis_url,
        "MIRAGE_DATA_DIR": str(settings.data_dir),
    }
    words = ["inspect", session, "--output", str(tmp_path / "pictures")]
    answer = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "service.cli", *words],
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stderr
    assert "of 6 views (1 observed)" in answer.stdout
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 4
    points = (tmp_path / "pictures" / "points.ply").read_bytes()
    count = answer.stdout.split(" points, ")[0]
    assert f"comment {count} of {count} points".encode() in points


async def test_a_backup_is_inspected_and_stays_as_it_is(
    control: ControlPlane, settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> None:
    session = await stored_session(control, settings)
    backup, pictures = (tmp_path_factory.mktemp(name) for name in ("backup", "pictures"))
    shutil.copytree(settings.data_dir / "segments", backup / "segments")
    before = {path: path.stat().st_mtime_ns for path in backup.rglob("*")}
    words = [session, "--output", str(pictures), "--data-dir", str(backup)]
    assert await asyncio.to_thread(main, ["inspect", *words]) == 0
    assert len(list(pictures.glob("*.png"))) == 4
    assert {path: path.stat().st_mtime_ns for path in backup.rglob("*")} == before


def test_an_unknown_session_is_named(settings: Settings, monkeypatch, capfd) -> None:
    monkeypatch.setenv("MIRAGE_REDIS_URL", settings.redis_url)
    monkeypatch.setenv("MIRAGE_DATA_DIR", str(settings.data_dir))
    assert main(["inspect", "nobody"]) == 1
    assert "nobody" in capfd.readouterr().err
