"""The server-side scripts (Lua), each atomic; most are a transition of one session.

Kept as `.lua` files beside this one; `run` sends the hash and, once per server, the text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any, cast

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from service.control.batches import Argument, Command, Pipelined
from service.errors import Conflict, SessionDeleted, UnknownSession

Call = tuple[Sequence[str], Sequence[Argument]]  # keys, arguments


@cache
def _text_and_sha(name: str) -> tuple[str, str]:
    text = (files(__package__) / f"{name}.lua").read_text()
    return text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


def command(name: str, keys: Sequence[str], args: Sequence[Argument]) -> Command:
    """The call of `name`.lua alone, for pipelines; NoScriptError where `run` was never."""
    return ("EVALSHA", _text_and_sha(name)[1], len(keys), *keys, *args)


async def run(
    redis: Redis | Pipelined, name: str, keys: Sequence[str], args: Sequence[Argument]
) -> Any:
    """Run `name`.lua; a server that does not know it yet is sent the text."""
    call = cast(Any, redis)
    try:
        return await call.execute_command(*command(name, keys, args))
    except NoScriptError:
        text, _ = _text_and_sha(name)
        return await call.execute_command("EVAL", text, len(keys), *keys, *args)


async def run_all(redis: Pipelined, name: str, calls: Sequence[Call]) -> list[Any]:
    """Run `name`.lua for each in one round trip; answers and errors, in order."""
    if not calls:
        return []
    answers = list(await redis.execute([command(name, *call) for call in calls]))
    for number, (keys, args) in enumerate(calls):
        if isinstance(answers[number], NoScriptError):
            answers[number] = await run(redis, name, keys, args)
    return answers


def raise_for_state(session: str, state: bytes) -> None:
    """Translate what a script said about a session that can't be used."""
    if state == b"unknown":
        raise UnknownSession(f"there is no session {session!r}")
    if state == b"deleted":
        raise SessionDeleted(f"session {session!r} was deleted or has expired")
    if state == b"failed":
        raise Conflict(f"session {session!r} has failed and takes no requests; see its error")
