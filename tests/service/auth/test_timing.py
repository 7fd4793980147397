"""Another's world answers as late as none: nobody learns from the clock what exists.

Both take the same path, so the shortest of many answers agree. Minima, taken in turns, and more of
them until they agree: noise only makes it last longer, a longer path never ends.
"""

from __future__ import annotations

import itertools
import time
from typing import Any

import httpx
from fastapi import FastAPI
from test_gate import concrete, routes

NOBODYS = "s0000000000000000000000"
ALIKE = 1.2  # an answer is about a millisecond, one more question to Redis a fifth of that
FEWEST, MOST = 4, 60  # rounds


def about_worlds(app: FastAPI) -> list[tuple[str, Any]]:
    return [
        (method, route)
        for route in routes(app)
        for method in sorted(getattr(route, "methods", None) or ())
        if {"session_id", "video_id"} & set(route.param_convertors)
    ]


async def test_anothers_world_takes_as_long_as_none_on_every_endpoint(
    app: FastAPI, bob: httpx.AsyncClient, anns: str
) -> None:
    calls = about_worlds(app)
    assert len(calls) >= 16
    shortest_s = {(at, session): 1e9 for at in range(len(calls)) for session in (anns, NOBODYS)}
    for count in itertools.count(1):
        for at, (method, route) in enumerate(calls):
            for session in (anns, NOBODYS) if (count + at) % 2 else (NOBODYS, anns):
                began_s = time.perf_counter()
                answer = await bob.request(method, concrete(route, session), json={})
                spent_s = time.perf_counter() - began_s
                assert answer.status_code == 404
                shortest_s[at, session] = min(spent_s, shortest_s[at, session])
        ratios = {
            f"{method} {route.path}": shortest_s[at, anns] / shortest_s[at, NOBODYS]
            for at, (method, route) in enumerate(calls)
        }
        differing = {name: one for name, one in ratios.items() if not 1 / ALIKE < one < ALIKE}
        if count >= FEWEST and not differing:
            return
        assert count < MOST, differing
