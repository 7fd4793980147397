"""Blocking work is done on a thread until it is known to be brief, and if it is not brief."""

from __future__ import annotations

import threading
import time

from service.brief import LAST, Brief


async def test_brief_work_is_done_at_once_and_long_work_on_a_thread() -> None:
    brief, here = Brief(0.5), threading.current_thread()

    async def threads(cost_s: float) -> list[threading.Thread]:
        def work() -> threading.Thread:
            time.sleep(cost_s)
            return threading.current_thread()

        return [await brief.run(work) for _ in range(LAST)]

    assert here not in await threads(0.0)  # nobody knows yet
    assert set(await threads(0.0)) == {here}
    slow = Brief(0.001)
    for _ in range(2 * LAST):
        assert await slow.run(lambda: time.sleep(0.002) or threading.current_thread()) is not here
