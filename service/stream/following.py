"""What a stream's client gets: frames as they are made, then whatever else changed.

At a rate or paused, frames wait for the player. A client that is slow holds this task at the
outbox; if it asked for `adaptive`, live frames that have been overtaken meanwhile are left out and
pictures get smaller until it keeps up.
"""

from __future__ import annotations

import time
from collections import deque
from itertools import takewhile

from service.control.frames import Frame
from service.control.requests import Progress, RequestState
from service.control.sessions import Session
from service.errors import SegmentCorrupt, UnknownRequest
from service.stream import answers
from service.stream.player import whole_id
from service.stream.resuming import last_shared
from service.stream.talk import Talk
from service.wire import world_pb2 as pb

FRAME_WAIT_S = 0.5  # how soon a change that makes no frame (state, failure) is noticed
FRAMES_AT_ONCE = 8
FRAMES_BEHIND = 32  # looked at when some of them may be left out
LOOK_S = 2.0  # and while frames come; each change says so, which may get lost
STATISTICS_S = 1.0
LATE_S = 0.1  # a send that waited so long: the client is slow


async def follow(talk: Talk) -> None:
    """Frames as they are pushed; now and then, or when there are none, whatever else changed."""
    figures, looked_s = Figures(), 0.0
    limit = FRAMES_BEHIND if talk.opening.adaptive else FRAMES_AT_ONCE
    async with talk.control.feed.watch(talk.session_id) as watch:
        while True:
            frames = await watch.read(talk.after, wait_s=FRAME_WAIT_S, limit=limit)
            if any(frame.branch > talk.branch for frame in frames):
                await _look(talk)  # rewound: there may be other frames before these
                _check_branch(talk, frames)
                continue
            branch = talk.branch
            for frame in _worth_sending(talk, frames):
                while not await talk.player.turn(LOOK_S):
                    await _look(talk)  # a pause may be long
                if talk.branch != branch:  # rewound meanwhile: the others are none of it any more
                    break
                await _send(talk, frame, figures)
            if frames and talk.branch == branch:
                talk.after = max(talk.after, frames[-1].frame)
            now_s = time.monotonic()
            if not frames or talk.requests or now_s - looked_s > LOOK_S:
                looked_s = now_s
                await _look(talk)
            if frames and figures.are_due(now_s):
                await talk.say(statistics=figures.told(talk, now_s))


def _check_branch(talk: Talk, frames: list[Frame]) -> None:
    """Who looks again for frames of a branch that never began would do so for ever."""
    newest = max(frames, key=lambda frame: frame.branch)
    if newest.branch > talk.branch:
        raise SegmentCorrupt(
            f"frame {newest.frame} of session {talk.session_id!r} is of branch {newest.branch}, "
            f"and the session has come to branch {talk.branch}"
        )


def _worth_sending(talk: Talk, frames: list[Frame]) -> list[Frame]:
    """Those of the cameras asked for; of live ones only the newest, for a slow client."""
    wanted = talk.opening.cameras
    shown = [frame for frame in frames if not wanted or frame.camera in wanted]
    if not talk.opening.adaptive:
        return shown
    newest = {frame.camera: frame.frame for frame in shown if frame.kind == "live"}
    kept = [frame for frame in shown if frame.kind != "live" or newest[frame.camera] == frame.frame]
    talk.num_skipped += len(shown) - len(kept)
    return kept


async def _send(talk: Talk, frame: Frame, figures: Figures) -> None:
    message = answers.frame_message(frame)
    time_s = frame.created_s if not talk.player.is_paced else time.time()
    picture = await talk.pictures.encoded(frame.media_type, frame.image, time_s - talk.started_at_s)
    told = message.frame
    told.media_type, told.image = picture
    told.planes.extend(await talk.planes.of(frame))
    before_s = time.monotonic()
    await talk.outbox.put(message)
    now_s = time.monotonic()
    talk.pictures.adaptation.sent(was_late=now_s - before_s > LATE_S)
    talk.latency.answered(frame.request_id, now_s)
    talk.after = frame.frame
    talk.num_sent += 1
    figures.sent_s.append(now_s)
    _note_path(talk, frame)


def _note_path(talk: Talk, frame: Frame) -> None:
    path = talk.paths.get(whole_id(frame.request_id))
    if path is not None:
        path.saw(frame.frame)
        talk.path_news.set()


class Figures:
    """What the statistics say."""

    def __init__(self) -> None:
        self.sent_s: deque[float] = deque(maxlen=240)
        self._told_s = time.monotonic()

    def are_due(self, now_s: float) -> bool:
        return now_s - self._told_s >= STATISTICS_S

    def told(self, talk: Talk, now_s: float) -> pb.Statistics:
        recent = takewhile(lambda at_s: at_s > self._told_s, reversed(self.sent_s))
        rate = sum(1 for _ in recent) / (now_s - self._told_s)
        self._told_s = now_s
        latency_s = talk.latency.median_s
        return pb.Statistics(
            frames_per_s=rate,
            latency_ms=None if latency_s is None else 1000 * latency_s,
            frames_sent=talk.num_sent,
            frames_skipped=talk.num_skipped,
            quality=talk.pictures.quality,
            backlog_frames=len(talk.outbox),
        )


async def _look(talk: Talk) -> None:
    """Tell the session's state if it has changed, and how this stream's requests ended."""
    session = await talk.control.sessions.get(talk.session_id)
    is_rewound = session.branch != talk.branch
    if is_rewound:
        await _turn(talk, session)
    state = (session.state, session.error)
    if state != talk.told:
        talk.told = state
        await talk.say(state=answers.status(session, talk.player))
    await _report_requests(talk, is_rewound)


async def _turn(talk: Talk, session: Session) -> None:
    """The session was rewound: what the client has beyond that point is no longer this world's."""
    last = await last_shared(talk.control, session, talk.branch)  # it may be the second rewind
    talk.branch = session.branch
    talk.after = min(talk.after, last)
    async with talk.steering:  # a seek of this stream that did it says so before it lets go
        talk.places.clear()
    branch, sequence = talk.sought
    if session.branch != branch:
        await talk.cancel_paths()  # they lead on from where the world no longer is
    reply_to = sequence if session.branch == branch else 0
    await talk.say(reply_to, rewound=pb.Rewound(frame=last, branch=session.branch))


async def _report_requests(talk: Talk, is_rewound: bool) -> None:
    """Say how the requests of this stream ended; their frames went out before, but for those that a
    rewind has taken back, and of what was cancelled or failed.
    """
    for request_id in list(talk.requests):
        try:
            progress = await talk.control.requests.get(talk.session_id, request_id)
        except UnknownRequest:  # so long ago that its record made room for others
            del talk.requests[request_id]
            continue
        path = talk.paths.get(whole_id(request_id))
        is_cut = is_rewound or (path is not None and path.ended is not None)
        if _is_over(progress, talk.after) or (is_cut and progress.state.is_final):
            del talk.requests[request_id]
            await _report(talk, progress)
    for path in list(talk.paths.values()):
        if talk.is_over(path):
            del talk.paths[path.id]
            talk.path_news.set()
            await talk.say(progress=answers.generation(path.progress(is_over=True)))


async def _report(talk: Talk, progress: Progress) -> None:
    """The end of a request; that of a piece ends its path only if it went wrong."""
    path = talk.paths.get(whole_id(progress.id))
    if path is None:
        await talk.say(progress=answers.generation(progress))
        return
    path.piece_over(progress)
    if progress.state is not RequestState.DONE and path.ended is None:
        path.ended, path.error = progress.state, progress.error


def _is_over(progress: Progress, after: int) -> bool:
    sent = progress.last_frame is None or progress.last_frame <= after
    return progress.state.is_final and (sent or progress.state is not RequestState.DONE)
