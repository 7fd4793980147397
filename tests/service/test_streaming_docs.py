"""docs/streaming.md: its tables name what there is, and its snippet runs beside a server."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import get_args

import pytest
from fake_worker import FakeWorker, working
from snippets import ADDRESS, run

from service.settings import Settings
from service.stream.messages import AnyMessage, OpenMessage
from service.wire import world_pb2 as pb

PAGE = (Path(__file__).parents[2] / "docs" / "streaming.md").read_text()
(SNIPPET,) = re.findall(r"```js\n(.*?)```", PAGE, re.S)
ROWS = [row.split(" | ") for row in re.findall(r"^\| (`.*) \|$", PAGE, re.M)]
NODE = ("node", "--experimental-websocket")  # a flag that Node.js >= 22 needs no more


def has_sockets() -> bool:
    if shutil.which("node") is None:
        return False
    return subprocess.run([*NODE, "-e", "0"], capture_output=True).returncode == 0


def named(cell: str) -> set[str]:
    return set(re.findall(r"`(\w+)`", cell))


def test_what_may_stand_in_the_address() -> None:
    told = {name for row in ROWS if len(row) == 2 for name in named(row[0])}
    assert told == set(OpenMessage.model_fields) - {"type", "sequence", "session"}


def test_what_a_client_may_say() -> None:
    told = {min(named(row[0]) - {"action"}): named(row[1]) for row in ROWS if len(row) == 3}
    messages = set(get_args(AnyMessage)) - {OpenMessage}
    names = {get_args(one.model_fields["type"].annotation)[0]: one for one in messages}
    assert told == {
        name: set(one.model_fields) - {"type", "sequence"} for name, one in names.items()
    }


def test_what_a_server_says() -> None:
    said = PAGE.partition("The server says")[2].partition("##")[0]
    assert {one.name for one in pb.ServerMessage.DESCRIPTOR.oneofs[0].fields} <= named(said)


@pytest.mark.skipif(not has_sockets(), reason="no node with WebSockets here")
async def test_the_snippet(server_url: str, settings: Settings, tmp_path: Path) -> None:
    code = SNIPPET.replace(ADDRESS, server_url).replace('"library"', '"attic"')
    (tmp_path / "walk.mjs").write_text(code)
    async with working(FakeWorker(settings)):
        output = await run([*NODE, str(tmp_path / "walk.mjs")], tmp_path)
    numbers = [int(line.split()[0]) for line in output.splitlines()]
    assert numbers == list(range(len(numbers))) and len(numbers) >= 9
