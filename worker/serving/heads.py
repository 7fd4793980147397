"""Requests that move a World's head and compute nothing: executed by its owner, in the order of the
log, when nothing of the session is uncommitted.
"""

from __future__ import annotations

from service.control.leases import Commit
from service.control.plane import ControlPlane
from worker.serving.scheduler import Job


async def execute(control: ControlPlane, job: Job, lease: str) -> Commit:
    """Do what the message asks; the commit that says so.

    May be called again with the same job after a crash, so everything in it is idempotent. Raises
    LeaseLost; any other MirageError fails the request.
    """
    return await control.lineage.execute(job.session, job.entry, job.progress, lease)
