"""Replies of Redis that have arrived already.

redis-py reads one reply per call, through eight frames of Python: 10 us each, ten times what the
reply costs. What lies in the buffer of its hiredis reader is taken from there instead. Trade-off:
that buffer is no part of redis-py's interface, which the pin in deploy/constraints.txt fixes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from redis._parsers import _AsyncHiredisParser
from redis._parsers.hiredis import NOT_ENOUGH_DATA


def arrived(connection: Any) -> Iterator[Any]:
    """Whole replies, as long as there are any; errors and pushes are among them."""
    parser = connection._parser
    if isinstance(parser, _AsyncHiredisParser) and parser._reader is not None:
        while (reply := parser._reader.gets()) is not NOT_ENOUGH_DATA:
            yield reply
