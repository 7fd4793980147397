"""Every endpoint against its own description: schemathesis with all checks, links followed.

Short here; `make fuzz-api` asks at least 20,000 times (FUZZ_EXAMPLES per endpoint and phase).
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import uvicorn
from uvicorn_server import serving

from bench.noop import start_worker
from service.app import create_app
from service.auth.keyring import Keyring
from service.auth.principal import KEY_SCOPES
from service.control.plane import ControlPlane
from service.local.embedded import free_port
from service.settings import Settings
from service.telemetry import configure_logging

HERE = Path(__file__).parent
CONFIG = HERE / "schemathesis.toml"
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "1"))
FULL = EXAMPLES > 1


@pytest.fixture
async def address(
    settings: Settings, control: ControlPlane, samples: Path
) -> AsyncIterator[tuple[str, str]]:
    """A gateway that requires keys, and a key."""
    if FULL:
        configure_logging("error")  # a line for each of 20,000 requests takes its time
    port = free_port()
    keyed = settings.model_copy(update={"require_keys": True, "max_sessions": 100_000})
    _, key = await Keyring(control.redis, control.kept).create("ann", frozenset(KEY_SCOPES))
    config = uvicorn.Config(create_app(keyed, samples), port=port, log_config=None)
    server = uvicorn.Server(config)
    async with serving(server):
        yield f"http://127.0.0.1:{port}", key


@pytest.mark.timeout(7200 if FULL else 120)
async def test_every_endpoint_keeps_its_word(
    address: tuple[str, str], settings: Settings, tmp_path: Path
) -> None:
    url, key = address
    report = tmp_path / "report.json"
    flags = {
        "--checks": "all",
        "--header": f"Authorization: Bearer {key}",
        "--max-examples": str(EXAMPLES),
        "--seed": "1",
        "--suppress-health-check": "all",
        "--generation-database": "none",
        "--report": "json",
        "--report-json-path": str(report),
    }
    if not FULL:
        flags |= {"--phases": "fuzzing,stateful", "--max-time": "10"}
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG)]
    command += ["run", f"{url}/openapi.json", "--no-color", "--continue-on-failure"]
    command += [part for pair in flags.items() for part in pair]
    command += shlex.split(os.environ.get("FUZZ_FLAGS", ""))
    places = [str(HERE), str(HERE.parent), str(HERE.parents[2])]
    env = os.environ | {"SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": os.pathsep.join(places)}
    worker = start_worker(settings)
    with (tmp_path / "words.txt").open("w+b") as output:  # a file, to look at while it runs
        try:
            process = await asyncio.create_subprocess_exec(
                *command, env=env, cwd=tmp_path, stdout=output
            )
            await process.wait()
        finally:
            worker.kill()
            worker.join()
        output.seek(0)
        words = output.read().decode()
    made = json.loads(report.read_text())["test_cases"]["generated"]
    print(f"{made:,} requests\n{words[-3000:]}")
    assert process.returncode == 0, words[words.find("FAILURES") :]
    # A busy machine makes few in ten seconds; without a limit it is 36 to 42 per example.
    assert made >= (32 * EXAMPLES if FULL else 5)
