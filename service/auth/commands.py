"""`mirage keys create | list | revoke`: keys are made where the data is, not over the network."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from service.auth.keyring import FORM, OWNER_IN_WORDS, ApiKey, Keyring
from service.auth.principal import KEY_SCOPES, Scope
from service.control.plane import ControlPlane
from service.errors import InvalidRequest
from service.local.reach import command_settings, reached

DAY_S = 86_400.0
MAX_DAYS = 36_500.0
PLACE = ("data_dir", "redis_url")
DEFAULT_SCOPES = [Scope.READ.value, Scope.WALK.value, Scope.WRITE.value]


def add_keys_command(commands: Any) -> None:
    """Add `keys` to the command line's parsers."""
    place = _place()
    parser = commands.add_parser("keys", help="API keys: create, list, revoke", parents=[place])
    verbs = parser.add_subparsers(required=True, metavar="verb")

    create = verbs.add_parser("create", help="make a key; it is printed once", parents=[place])
    create.add_argument("--owner", required=True, help="whose worlds it opens; keys may share one")
    create.add_argument(
        "--scope",
        action="append",
        choices=[scope.value for scope in KEY_SCOPES],
        help=f"may be given several times; default: {', '.join(DEFAULT_SCOPES)}",
    )
    create.add_argument("--label", default="", help="a note for `list`")
    create.add_argument("--requests-per-s", type=float, help="with bursts of five seconds' worth")
    create.add_argument("--frames-per-day", type=int)
    create.add_argument("--max-sessions", type=int)
    create.add_argument("--expires-days", type=float)
    create.set_defaults(run=run_create)

    every = verbs.add_parser("list", help="all keys, without their secrets", parents=[place])
    every.set_defaults(run=run_list)

    revoke = verbs.add_parser("revoke", help="end a key, at once and for good", parents=[place])
    revoke.add_argument("id", help="the 12 characters after mk_, or the whole key")
    revoke.set_defaults(run=run_revoke)


def _place() -> argparse.ArgumentParser:
    """Where the keys are: before the verb or behind it."""
    unset = argparse.SUPPRESS  # so that what stands before the verb is not overwritten by a default
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--data-dir", default=unset, help="default: MIRAGE_DATA_DIR or .mirage")
    parser.add_argument(
        "--redis-url",
        default=unset,
        help="default: MIRAGE_REDIS_URL, or that of a running `mirage up` in the data folder",
    )
    return parser


def run_create(options: argparse.Namespace) -> int:
    return asyncio.run(_create(options))


async def _create(options: argparse.Namespace) -> int:
    scopes = frozenset(Scope(name) for name in options.scope or DEFAULT_SCOPES)
    quotas = ("label", "requests_per_s", "frames_per_day", "max_sessions")
    fields = {name: getattr(options, name) for name in quotas}
    days = options.expires_days
    if days is not None and not 0 < days <= MAX_DAYS:
        raise InvalidRequest(f"--expires-days {days:g}: must be more than 0, at most {MAX_DAYS:g}")
    lifetime_s = None if days is None else days * DAY_S
    async with _control(options, create=True) as control:
        try:
            key, text = await Keyring(control.redis, control.kept).create(
                options.owner, scopes, lifetime_s=lifetime_s, **fields
            )
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0]).replace("_", "-")
            allowed = f"must be {OWNER_IN_WORDS}" if name == "owner" else first["msg"]
            raise InvalidRequest(f"--{name} {first['input']!r}: {allowed}") from None
    print(text)
    print(f"key {key.id} of {key.owner}; it is not shown again", file=sys.stderr)
    return 0


def run_list(options: argparse.Namespace) -> int:
    return asyncio.run(_list(options))


async def _list(options: argparse.Namespace) -> int:
    async with _control(options, unchanged=True) as control:
        found = await Keyring(control.redis, control.kept).list()
    for key in found:
        print(_line(key))
    if not found:
        print("no keys; `mirage keys create` makes one", file=sys.stderr)
    return 0


def run_revoke(options: argparse.Namespace) -> int:
    return asyncio.run(_revoke(options))


async def _revoke(options: argparse.Namespace) -> int:
    whole = FORM.fullmatch(options.id)
    name = whole[2] if whole else options.id
    async with _control(options) as control:
        await Keyring(control.redis, control.kept).revoke(name)
    print(f"key {name} is revoked")
    return 0


def _control(
    options: argparse.Namespace, *, create: bool = False, unchanged: bool = False
) -> AbstractAsyncContextManager[ControlPlane]:
    given = {name: value for name, value in vars(options).items() if name in PLACE}
    return reached(command_settings(**given), create=create, unchanged=unchanged)


def _line(key: ApiKey) -> str:
    parts = [key.id, key.owner, ",".join(sorted(key.scopes)), f"made {_day(key.created_s)}"]
    if key.expires_s is not None:
        word = "expires" if key.expires_s > time.time() else "expired"
        parts.append(f"{word} {_day(key.expires_s)}")
    for name in ("requests_per_s", "frames_per_day", "max_sessions"):
        if getattr(key, name) is not None:
            parts.append(f"{name}={getattr(key, name):g}")
    return "  ".join([*parts, key.label]).rstrip()


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")
