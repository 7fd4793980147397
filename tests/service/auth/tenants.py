"""What the fixtures of this folder are."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import httpx

NewKey = Callable[..., Awaitable[str]]  # (owner, *scopes, **quotas) -> the key's text
Connect = Callable[[str], httpx.AsyncClient]  # a client that sends this credential, "" = none
