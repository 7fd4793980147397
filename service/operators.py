"""`mirage fsck | export | import`: for operators, beside the service or without it."""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator, Collection
from itertools import islice
from pathlib import Path
from typing import Any

from service.auth.keyring import OWNER, OWNER_IN_WORDS
from service.errors import InvalidRequest
from service.local.reach import command_settings, reached
from service.outputs import make_room
from service.settings import Settings
from service.store.fsck import Findings, Fsck

READ_BYTES = 1 << 20
WRONG = 1  # exit code
FIRST = 5  # of many names
# fmt: off
HARMED = (
    "missing", "corrupt", "inconsistent", "ambiguous", "unreached", "lost", "forks_not_registered"
)
# fmt: on


def add_operators_commands(commands: Any) -> None:
    """Add the three to the command line's parsers."""
    fsck = commands.add_parser("fsck", help="check that every world is whole; repair")
    fsck.add_argument("--repair", action="store_true", help="mend what needs no guess")
    fsck.add_argument("--deep", action="store_true", help="read every segment")
    fsck.add_argument("--json", action="store_true", help="everything as JSON")
    fsck.add_argument(
        "--choose", metavar="SESSION=SEGMENT", help="where a world ends that could not be certain"
    )
    fsck.set_defaults(run=lambda options: asyncio.run(_fsck(options)))

    export = commands.add_parser("export", help="write a world to a file")
    export.add_argument("session")
    export.add_argument("file", type=Path)
    export.add_argument("--snapshot", help="this state, not the newest")
    export.set_defaults(run=lambda options: asyncio.run(_export(options)))

    importing = commands.add_parser("import", help="open a session on a file that export wrote")
    importing.add_argument("file", type=Path)
    importing.add_argument("--owner", default="", help="whose session it becomes")
    importing.set_defaults(run=lambda options: asyncio.run(_import(options)))
    for one in (fsck, export, importing):
        one.add_argument("--data-dir", help="default: MIRAGE_DATA_DIR or .mirage")


def _settings(options: argparse.Namespace) -> Settings:
    given = {} if options.data_dir is None else {"data_dir": options.data_dir}
    return command_settings(**given)


async def _fsck(options: argparse.Namespace) -> int:
    changes = options.repair or options.choose
    async with reached(_settings(options), unchanged=not changes) as control:
        fsck = Fsck(control, deep=options.deep)
        if options.choose:
            session, is_given, segment = options.choose.partition("=")
            if not is_given:
                raise InvalidRequest(f"--choose {options.choose!r}: give SESSION=SEGMENT")
            await fsck.choose(session, segment)
        findings = await (fsck.repair() if options.repair else fsck.check())
    print(json.dumps(findings.document(), indent=1) if options.json else _text(findings))
    return 0 if findings.is_whole else WRONG


def _text(found: Findings) -> str:
    lines = [f"{found.num_sessions} sessions, {found.num_segments} segments"]
    lines += _another_store(found) if found.misses_all else _findings(found)
    lines += found.repaired
    lines.append("every world is whole" if found.is_whole else "not every world is whole")
    return "\n".join(lines)


def _another_store(found: Findings) -> list[str]:
    """Said once: a line for each of its worlds would hide it."""
    lines = [
        f"missing: all segments of all sessions ({_first(found.missing)}): this store is empty, or "
        "another one. Name the one that belongs to this Redis with MIRAGE_STORE_URL, "
        "MIRAGE_DATA_DIR or --data-dir. Until then --repair changes nothing; --json lists all that "
        "is missing"
    ]
    if found.unknown_to_redis:
        others = found.unknown_to_redis
        lines.append(f"unknown to Redis: {len(others)} sessions of this store ({_first(others)})")
    return lines


def _first(names: Collection[str]) -> str:
    more = [f"and {len(names) - FIRST:,} more"] if len(names) > FIRST else []
    return ", ".join([*islice(names, FIRST), *more])


def _findings(found: Findings) -> list[str]:
    lines = []
    for name in HARMED:
        lines += [f"{name}: {one}: {what}" for one, what in getattr(found, name).items()]
    lines += [f"unknown to Redis: {one} (--repair rebuilds it)" for one in found.unknown_to_redis]
    lines += [f"shut, but certain by now: {one} (--repair opens it)" for one in found.shut]
    if found.garbage:
        lines.append(f"garbage: {len(found.garbage)} objects, {found.garbage_bytes:,} bytes")
    return lines


async def _export(options: argparse.Namespace) -> int:
    make_room(options.file)
    async with reached(_settings(options), unchanged=True) as control:
        export = await control.exports.open(options.session, options.snapshot)
        partial = options.file.with_name(f"{options.file.name}.part")
        try:
            with partial.open("wb") as file:
                async for chunk in export.chunks():
                    file.write(chunk)
            partial.rename(options.file)
        finally:
            partial.unlink(missing_ok=True)  # a full disk would keep it
    print(f"{options.file}: {export.num_bytes:,} bytes")
    return 0


async def _import(options: argparse.Namespace) -> int:
    if options.owner and not re.fullmatch(OWNER, options.owner):
        raise InvalidRequest(f"--owner {options.owner!r}: must be {OWNER_IN_WORDS}")
    async with reached(_settings(options), create=True) as control:
        session = await control.imports.read(_chunks(options.file), options.owner)
    print(session.id)
    print(f"the id of the session that {options.file} has become", file=sys.stderr)
    return 0


async def _chunks(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(READ_BYTES):
            yield chunk
