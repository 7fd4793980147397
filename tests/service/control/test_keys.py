"""Keys of one session lie in one slot of Redis Cluster; others carry no tag."""

from __future__ import annotations

import inspect

import pytest

from service.control import keys

OF_A_SESSION = [keys.record, keys.lease, keys.log, keys.manifest, keys.frames,
                keys.requests, keys.order, keys.cancels, keys.shares, keys.video,
                keys.reservation, keys.guests_order]  # fmt: skip


@pytest.mark.parametrize("key", OF_A_SESSION)
def test_keys_of_a_session_share_its_hash_tag(key) -> None:  # type: ignore[no-untyped-def]
    assert key("s1").count("{s1}") == 1


def test_no_two_keys_are_the_same() -> None:
    functions = [value for _, value in inspect.getmembers(keys, inspect.isfunction)]
    constants = [keys.WAKE, keys.BUSY, keys.EXPIRY, keys.GRAVES, keys.WORKERS, keys.API_KEYS]
    constants += [keys.WEBHOOKS, keys.WOKEN]
    filled = [function(*"xy"[: function.__code__.co_argcount]) for function in functions]
    names = filled + constants
    assert len(names) == len(set(names)) and len(functions) >= len(OF_A_SESSION)


def test_a_blocking_read_ends_before_its_socket_gives_up() -> None:
    assert keys.MAX_WAIT_S < keys.SOCKET_TIMEOUT_S
