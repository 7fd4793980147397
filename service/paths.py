"""From a client's path to a request in the log; the one place where REST and the stream meet it.

Actions continue from where the camera will be once everything asked for is done: the last pose in
the log, else the last frame. A request that is cancelled meanwhile leaves the path where it was
planned, which is what a client that queued it expects.
"""

from __future__ import annotations

import asyncio

import numpy as np

from service.control.plane import ControlPlane
from service.control.requests import Generate
from service.errors import FieldProblem, InvalidRequest
from service.limits import MAX_ACTIONS
from service.poses import Array, check_length
from service.schemas import PathIn
from service.wire import world_pb2 as pb


async def path_request(
    control: ControlPlane, session_id: str | None, path: PathIn, max_poses: int
) -> Generate:
    """The path checked and in OpenCV axes, ready for the log; without a session it begins where a
    new one's first image stands. Raises InvalidRequest."""
    camera, start = path.camera, np.eye(4)
    if path.actions and session_id is not None:
        start = await last_camera(control, session_id, camera)
    poses = await asyncio.to_thread(path.flat_poses, start, max_poses)  # 30 us a pose
    return Generate(poses=poses, camera=camera, client_time_ms=path.client_time_ms)


def check_lists(path: pb.Path, max_poses: int) -> None:
    """Refuse a path that is too long before all of it is converted; raises InvalidRequest."""
    check_length(len(path.poses), max_poses)
    if len(path.actions) > MAX_ACTIONS:
        allowed = f"a list of at most {MAX_ACTIONS}"
        problem = FieldProblem("actions", f"{len(path.actions):,} actions", allowed)
        raise InvalidRequest("These fields can't be used: actions.", fields=(problem,))


async def last_camera(control: ControlPlane, session_id: str, camera: int = 0) -> Array:
    """(4, 4): where this camera will be when the log is done; one that was not seen lately begins
    where the world was seen last.
    """
    session = await control.sessions.get(session_id)
    pose = await control.requests.last_pose(session_id, camera)
    if pose is None and session.next_frame > 0:
        pose = (await control.frames.last(session_id, camera)).pose
    return np.asarray(pose or session.pose, dtype=np.float64).reshape(4, 4)
