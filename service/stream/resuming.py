"""Where a stream goes on whose client has been here before."""

from __future__ import annotations

from service.control.plane import ControlPlane
from service.control.sessions import Session
from service.stream.messages import OpenMessage


async def resume_after(control: ControlPlane, session: Session, opening: OpenMessage) -> int:
    """The last frame that the client has of this world: what it says, or what rewinds left of it.

    Frames of branches that are newer than the client's are none that it has, whatever their number.
    """
    newest = session.next_frame - 1
    if opening.after is None:
        return newest
    after = min(opening.after, newest)
    if opening.branch is None or opening.branch >= session.branch:
        return after
    unseen = await control.frames.newer_than(session.id, opening.branch)
    first = session.branch_first_frame  # of older branches, if a snapshot brought them back
    return min(after, first - 1, (session.next_frame if unseen is None else unseen.first_frame) - 1)
