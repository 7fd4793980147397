"""Where a stream goes on whose client has been here before."""

from __future__ import annotations

from service.control.plane import ControlPlane
from service.control.sessions import Session
from service.stream.messages import OpenMessage


async def resume_after(control: ControlPlane, session: Session, opening: OpenMessage) -> int:
    """The last frame that the client has of this world: what it says, or what rewinds left."""
    newest = session.next_frame - 1
    if opening.after is None:
        return newest
    after = min(opening.after, newest)
    if opening.branch is None or opening.branch >= session.branch:
        return after
    return min(after, await last_shared(control, session, opening.branch))


async def last_shared(control: ControlPlane, session: Session, branch: int) -> int:
    """The last frame that rewinds have left of an older branch.

    Frames of newer branches are none that it had, whatever their number; nor are those of branches
    older still, if a snapshot has just brought them back.
    """
    unseen = await control.frames.newer_than(session.id, branch)
    next_frame = session.next_frame if unseen is None else unseen.first_frame
    return min(session.branch_first_frame, next_frame) - 1
