"""A walk out and back, whole or in pieces, and what comes between: forks, ends of requests."""

from __future__ import annotations

from noop_worker import open_session, pose

from service.control.branches import ForkIn
from service.control.frames import Frame
from service.control.plane import ControlPlane
from service.control.requests import Generate, Progress, RequestState
from service.control.sessions import Session
from service.errors import error_of

OUT = [pose(i) for i in range(1, 9)]
BACK = [pose(i) for i in range(8, 0, -1)]
AT_8 = ForkIn(frame=8)


async def walk(control: ControlPlane, session: str, poses: list[list[float]]) -> list[Frame]:
    path = await control.requests.append(session, Generate(poses=poses))
    done = await control.branches.wait(session, path.id, 60)
    assert done.state is RequestState.DONE and done.last_frame is not None
    return await frames_of(control, session, done.last_frame + 1)


async def frames_of(control: ControlPlane, session: str, count: int) -> list[Frame]:
    frames: list[Frame] = []
    while len(frames) < count:
        more = await control.frames.read(session, after=len(frames) - 1)
        assert more
        frames += more
    return frames


def images(frames: list[Frame]) -> list[bytes]:
    return [frame.image for frame in frames]


async def done(control: ControlPlane, session: str, progress: Progress) -> dict[str, object]:
    progress = await control.branches.wait(session, progress.id)
    if progress.error is not None:
        raise error_of(progress.error)
    assert progress.result is not None
    return progress.result


async def forked(control: ControlPlane, session: str, ask: ForkIn = AT_8) -> Session:
    result = await done(control, session, await control.branches.fork(session, ask))
    return await control.sessions.get(str(result["session"]))


async def undisturbed(control: ControlPlane) -> list[Frame]:
    """A World that walks out and back without a break."""
    session = await open_session(control, 3)
    await walk(control, session.id, OUT)
    return await walk(control, session.id, BACK)
