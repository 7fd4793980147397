"""The command: flags, `walk` against a server, and processes that leave nothing behind."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import av
import httpx
import pytest
import websockets
from fake_worker import FakeWorker, working
from uploads_made import png

from service.cli import main
from service.errors import InvalidRequest
from service.local.embedded import free_port
from service.settings import Settings
from service.words import parse_actions


def test_actions_in_words() -> None:
    assert parse_actions("forward 1.5, yaw -30,left 0.2 , back 1") == [
        {"forward_m": 1.5},
        {"yaw_deg": -30.0},
        {"right_m": -0.2},
        {"forward_m": -1.0},
    ]


@pytest.mark.parametrize("text", ["", "jump 1", "forward", "forward far", "forward 1 yaw 3"])
def test_words_that_are_no_action(text: str) -> None:
    with pytest.raises(InvalidRequest, match="forward \\| back"):
        parse_actions(text)


async def test_walk_writes_a_video(
    server_url: str, settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photo.png").write_bytes(png())
    output = tmp_path / "out" / "walk.mp4"
    flags = ["walk", "--server", server_url, "--image", str(tmp_path / "photo.png")]
    flags += ["--actions", "forward 0.3, yaw 8", "--output", str(output), "--seed", "1"]
    async with working(FakeWorker(settings)):
        assert await asyncio.to_thread(main, flags) == 0
    with av.open(str(output)) as container:
        assert len(list(container.decode(video=0))) == 5
    assert "frame 5 of 5, 50% remembered" in capsys.readouterr().out
    async with httpx.AsyncClient(base_url=server_url) as client:
        assert (await client.get("/v1/sessions")).json()["sessions"] == []


def test_mistakes_are_one_line_and_a_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = f"http://127.0.0.1:{free_port()}"
    picture = tmp_path / "photo.png"
    assert main(["walk", "--server", server, "--image", str(picture)]) == 1
    assert "photo.png" in capsys.readouterr().err
    picture.write_bytes(png())
    assert main(["walk", "--server", server, "--image", str(picture)]) == 1
    assert capsys.readouterr().err.startswith(f"mirage: {server} does not answer")
    with pytest.raises(SystemExit):
        main(["walk"])
    with pytest.raises(SystemExit):
        main(["demo", "--sample", "library", "--image", str(picture)])
    assert "not allowed with argument" in capsys.readouterr().err
    assert main(["demo", "--fov-deg", "70"]) == 1
    assert "--fov-deg is of --image" in capsys.readouterr().err
    for command in (["up"], ["inspect", "s1"], ["fsck"], ["keys", "list"]):
        assert main([*command, "--data-dir", ""]) == 1  # of a variable that is not set
        assert "MIRAGE_DATA_DIR='': must name a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["walk", "--sample", "attic", "--output"], ["export", "s1"]], ids=lambda one: one[0]
)
def test_a_folder_is_no_place_for_a_file_and_said_before_the_work(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, str(tmp_path)]) == 1
    assert f"{tmp_path} is a folder: name a file in it" in capsys.readouterr().err


def environment(**variables: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MIRAGE_")}
    return {**clean, "OMP_NUM_THREADS": "1", **variables}


def test_ctrl_c_while_the_command_is_imported_is_quiet(tmp_path: Path) -> None:
    (tmp_path / "httpx.py").write_text(
        "import time\nprint('importing', flush=True)\ntime.sleep(60)"
    )
    heeding = "signal.signal(signal.SIGINT, signal.default_int_handler)"  # a shell may not
    program = f"import signal, sys; {heeding}; from service.__main__ import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == 130


def test_the_command_is_a_module_too() -> None:
    command = [sys.executable, "-m", "service", "up", "--help"]
    assert "--data-dir" in subprocess.run(command, check=True, stdout=-1, text=True).stdout


def start(*flags: str, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "service.cli", *flags],
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_the_gateway_says_what_is_missing() -> None:
    process = start("gateway")
    words, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert words.startswith("mirage: MIRAGE_REDIS_URL is empty")
    process = start("gateway", MIRAGE_COLOUR="red")
    words, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and "MIRAGE_COLOUR" in words
    files = {"MIRAGE_GRPC_TLS_CERT": "none.pem", "MIRAGE_GRPC_TLS_KEY": "none.key"}
    process = start("gateway", MIRAGE_PORT="0", MIRAGE_GRPC_PORT="0", **files)
    words, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert words.startswith("mirage: MIRAGE_GRPC_TLS_CERT='none.pem'")
    assert len(words.splitlines()) == 1


def test_a_port_that_is_taken_is_one_line(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = start(
            "gateway",
            MIRAGE_REDIS_URL=settings.redis_url,
            MIRAGE_DATA_DIR=str(settings.data_dir),
            MIRAGE_GRPC_PORT=str(port),
        )
        words, _ = process.communicate(timeout=20)
    assert process.returncode == 1
    assert words.startswith(f"mirage: port {port} of 127.0.0.1 can't be listened on")
    assert "MIRAGE_GRPC_PORT" in words and len(words.splitlines()) == 1


async def test_the_gateway_serves_until_sigterm(settings: Settings) -> None:
    port = str(free_port())
    variables = {
        "MIRAGE_REDIS_URL": settings.redis_url,
        "MIRAGE_DATA_DIR": str(settings.data_dir),
        "MIRAGE_GRPC_PORT": str(free_port()),
    }
    process = start("gateway", "--port", port, **variables)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        async with asyncio.timeout(60):
            while True:
                try:
                    answer = await client.get("/readyz")
                    break
                except httpx.TransportError:
                    await asyncio.sleep(0.05)
    async with websockets.connect(f"ws://127.0.0.1:{port}/v1/sessions/s1/stream?ticket=t0p") as ws:
        assert "unknown-session" in str(await ws.recv())
    process.send_signal(signal.SIGTERM)
    words, _ = await asyncio.to_thread(process.communicate, timeout=60)
    assert answer.status_code == 503
    assert process.returncode == 0
    assert "/v1/sessions/s1/stream" in words and "t0p" not in words


def test_no_torch_is_imported() -> None:
    code = "import sys, service.cli; sys.exit('torch' in sys.modules or 'worker' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
