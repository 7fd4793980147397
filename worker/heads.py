"""Requests that move a World's head and compute nothing: executed by its owner, in the order of the
log, when nothing of the session is uncommitted.
"""

from __future__ import annotations

from service.control import ControlPlane
from service.errors import GenerationFailed
from service.leases import Commit
from worker.scheduler import Job


async def execute(control: ControlPlane, job: Job, lease: str) -> Commit | None:
    """Do what the message asks; a Commit is committed by the caller, None = committed here.

    May be called again with the same job after a crash, so everything in it is idempotent. Raises
    LeaseLost; any other MirageError fails the request.
    """
    raise GenerationFailed(f"this worker does not know requests of kind {job.entry.message.kind!r}")
