"""Another's world answers as late as none: nobody learns from the clock what exists.

Each endpoint is asked about both, one right after the other, in alternating order. If both take the
same path it is a coin that says which was slower, however busy the machine is; a longer path is
slower nearly every time. What looks loaded is asked again, more often, before it is believed.
"""

from __future__ import annotations

import time
from typing import Any

import httpx
from fastapi import FastAPI
from test_gate import concrete, routes

NOBODYS = "s0000000000000000000000"
PAIRS, AGAIN = 10, 32  # of each endpoint; where the first look loaded
LOADED = 0.1  # from half of the pairs; one more question to Redis makes 0.15 to 0.25


def about_worlds(app: FastAPI) -> list[tuple[str, Any]]:
    return [
        (method, route)
        for route in routes(app)
        for method in sorted(getattr(route, "methods", None) or ())
        if {"session_id", "video_id"} & set(route.param_convertors)
    ]


async def spent_s(client: httpx.AsyncClient, method: str, path: str) -> float:
    began_s = time.perf_counter()
    answer = await client.request(method, path, json={})
    assert answer.status_code == 404
    return time.perf_counter() - began_s


async def slower(
    client: httpx.AsyncClient, method: str, route: Any, session: str, pairs: int
) -> int:
    """In how many pairs the session took longer than one that never was."""
    count, paths = 0, (concrete(route, session), concrete(route, NOBODYS))
    for number in range(pairs):
        order = (0, 1) if number % 2 else (1, 0)
        took_s = {which: await spent_s(client, method, paths[which]) for which in order}
        count += took_s[0] > took_s[1]
    return count


async def test_anothers_world_takes_as_long_as_none(
    app: FastAPI, bob: httpx.AsyncClient, anns: str
) -> None:
    calls = about_worlds(app)
    assert len(calls) >= 16

    async def counts(pairs: int) -> list[int]:
        return [await slower(bob, method, route, anns, pairs) for method, route in calls]

    first = await counts(PAIRS)
    share = sum(first) / (PAIRS * len(calls))
    if abs(share - 0.5) > LOADED:
        share = sum(await counts(AGAIN)) / (AGAIN * len(calls))
    assert abs(share - 0.5) < LOADED, share
    for (method, route), count in zip(calls, first, strict=True):
        if count in (0, PAIRS):
            again = await slower(bob, method, route, anns, AGAIN)
            assert 2 < again < AGAIN - 2, f"{method} {route.path}: {again} of {AGAIN} slower"
