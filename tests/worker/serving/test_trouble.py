"""What passes is waited out, ever more slowly, and forgotten once something works."""

from __future__ import annotations

import errno
import time

from redis.exceptions import ConnectionError

from service.errors import StoreDown
from worker.serving.metrics import Metrics
from worker.serving.trouble import Trouble, attempt


async def test_waits_grow_until_something_works() -> None:
    trouble = Trouble("w1", Metrics())
    assert not await trouble.wait()
    for expected_s in (0.2, 0.4):
        started_s = time.monotonic()
        trouble.note(StoreDown("the disk is full"))
        trouble.note(StoreDown("the disk is full"))  # of the same moment
        assert await trouble.wait()
        assert time.monotonic() - started_s > 0.98 * expected_s
    assert "the disk is full" in trouble.problem
    trouble.over()
    assert trouble.problem == "" and not await trouble.wait()


async def test_an_attempt_answers_with_what_went_wrong() -> None:
    async def work(fine: bool) -> str:
        if not fine:
            raise ValueError("no")
        return "done"

    assert await attempt(work(True)) == "done"
    assert isinstance(await attempt(work(False)), ValueError)


def test_what_anybody_may_read_names_no_place() -> None:
    trouble = Trouble("w1", Metrics())
    full = OSError(errno.ENOSPC, "No space left on device", "/var/lib/worlds")
    for error, told in (
        (ConnectionError("Error 111 connecting to 10.0.0.7:6379."), "Redis does not answer"),
        (full, "No space left on device"),
        (OSError(errno.ECONNREFUSED, "Connect call failed ('10.0.0.7', 6379)"), "refused"),
    ):
        trouble.note(error)
        assert told in trouble.problem
        assert "10.0.0.7" not in trouble.problem and "/var" not in trouble.problem
