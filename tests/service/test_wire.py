"""The generated stubs are what proto/ says; the contract keeps the rules and breaks no client."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
GENERATED = ("world_pb2.py", "world_pb2.pyi", "world_pb2_grpc.py", "world_pb2_grpc.pyi")


def test_stubs_are_current(tmp_path: Path) -> None:
    command = next(
        line.strip()
        for line in (ROOT / "Makefile").read_text().replace("\\\n", "").splitlines()
        if "grpc_tools.protoc" in line
    )
    command = command.replace("=. ", f"={tmp_path} ").replace("$(BIN)", str(BIN)).replace("$$", "$")
    subprocess.run(["bash", "-c", command], cwd=ROOT, check=True, capture_output=True)
    for name in GENERATED:
        made = (tmp_path / "service" / "wire" / name).read_text()
        assert made == (ROOT / "service" / "wire" / name).read_text(), f"{name}: run `make proto`"


def buf(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([BIN / "buf", *arguments], cwd=cwd, capture_output=True, text=True)


def test_the_contract_keeps_the_rules_and_breaks_nobody() -> None:
    for arguments in (("lint", "proto"), ("breaking", "proto", "--against", PUBLISHED)):
        result = buf(*arguments)
        assert result.returncode == 0, result.stdout + result.stderr


PUBLISHED = "proto/published.binpb"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("double fov_deg = 8;", "double fov_deg = 88;"),
        ("int64 num_frames = 10;", "string num_frames = 10;"),
        ("  AXES_ROS = 5; // x forward, y left, z up\n", ""),
    ],
)
def test_a_change_that_breaks_clients_is_noticed(tmp_path: Path, old: str, new: str) -> None:
    shutil.copytree(ROOT / "proto", tmp_path / "proto")
    file = tmp_path / "proto" / "mirage" / "v1" / "world.proto"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    assert buf("breaking", "proto", "--against", PUBLISHED, cwd=tmp_path).returncode != 0
