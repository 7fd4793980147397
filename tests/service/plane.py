"""What tests of the control plane share: a small session, and a worker's half of it without a
model.
"""

from __future__ import annotations

import time

import numpy as np

from service.control.frames import Frame, ManifestEntry
from service.control.leases import Commit, Leases, Owned
from service.control.plane import ControlPlane
from service.control.requests import RequestState
from service.control.sessions import IDENTITY, Intrinsics, NewSession, Session
from service.store.segments import Upload

INTRINSICS = Intrinsics(fx=50, fy=50, cx=32, cy=16, width=64, height=32)
IMAGE = Upload(np.zeros((32, 64, 3), np.uint8))


async def new_session(control: ControlPlane, **fields: object) -> Session:
    return await control.sessions.create(NewSession(intrinsics=INTRINSICS, **fields), IMAGE)


def leases_of(control: ControlPlane, worker: str = "w1", lease_s: float = 5.0) -> Leases:
    return Leases(control.redis, worker, lease_s, frames_kept=8)


def frame(number: int, branch: int = 1) -> Frame:
    return Frame(
        frame=number,
        branch=branch,
        pose=IDENTITY,
        coverage=0.5,
        request_id="r",
        kind="generate",
        media_type="image/webp",
        created_s=time.time(),
        image=f"image {number}".encode(),
    )


def step(owned: Owned, first: int, count: int, segment: str = "") -> Commit:
    """A commit of `count` frames that finishes the first entry of the log."""
    entry = owned.entries[0]
    done = owned.progress[entry.id].model_copy(update={"state": RequestState.DONE, "done": count})
    manifest = ManifestEntry(
        id=segment or f"segment-{first}",
        kind="generate",
        branch=1,
        first_frame=first,
        num_frames=count,
        num_bytes=1,
    )
    return Commit(
        tip=owned.session.tip,
        cursor=entry.entry,
        cursor_done=0,
        request_id=entry.id,
        progress=done,
        segment=manifest,
        frames=[frame(number) for number in range(first, first + count)],
        record={"next_frame": first + count},
    )
