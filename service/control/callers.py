"""Who holds what a process has few of: owners, and apart from them the guests of their share links,
so that a link which was passed on costs its owner nothing."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple


class Caller(NamedTuple):
    """Those who are counted together."""

    owner: str = ""  # "" = there are no keys
    share: str = ""  # the share link, of guests


Held = Counter[Caller]


def is_full(held: Held, caller: Caller, most: int) -> bool:
    """Whether a caller has all it may: an owner `most`, the guests of all its links together as
    many again, and those of one link half of that.
    """
    if not caller.owner:
        return False
    if not caller.share:
        return held[caller] >= most
    guests = sum(count for one, count in held.items() if one.share and one.owner == caller.owner)
    return guests >= most or held[caller] >= max(1, most // 2)
