"""The clock of a stream: when the next frame may go out, and how far ahead paths may be made.

Without a rate frames go out as they come. With one they go out no faster, pause and speed change
that, and a path is given to the worker in slices, so that generation runs at most `lead_frames`, or
two chunks if that is more, ahead of play: who pauses or leaves pays for nothing that nobody sees.
Slices are whole chunks, so the frames are those that the whole path would have given.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from service.control.requests import Generate, Progress, RequestState

MIN_SPEED, MAX_SPEED = 0.01, 100.0


class Player:
    def __init__(self, frames_per_s: float) -> None:
        self._frames_per_s = frames_per_s
        self.speed, self.paused = 1.0, False
        self._due_s = 0.0
        self._changed, self._interrupted = asyncio.Event(), False

    @property
    def is_paced(self) -> bool:
        return self._frames_per_s > 0

    def set(self, paused: bool | None, speed: float | None) -> None:
        self.paused = self.paused if paused is None else paused
        self.speed = self.speed if speed is None else speed
        self._due_s = 0.0
        self._changed.set()

    def interrupt(self) -> None:
        """Whoever waits for a turn should look around first."""
        self._interrupted = True
        self._changed.set()

    async def turn(self, most_s: float) -> bool:
        """Wait until the next frame may go out; False: not yet, look around and ask again."""
        until_s = None
        while (wait_s := self._wait_s()) != 0 or self._interrupted:
            now_s = time.monotonic()
            until_s = now_s + most_s if until_s is None else until_s
            if self._interrupted or now_s >= until_s:
                self._interrupted = False
                return False
            self._changed.clear()
            with suppress(TimeoutError):
                left_s = until_s - now_s
                async with asyncio.timeout(left_s if wait_s is None else min(wait_s, left_s)):
                    await self._changed.wait()
        if self.is_paced:
            now_s = time.monotonic()
            self._due_s = max(self._due_s, now_s) + 1 / (self._frames_per_s * self.speed)
        return True

    def _wait_s(self) -> float | None:
        """0 = go; None = until something changes."""
        if self.paused:
            return None
        return max(0.0, self._due_s - time.monotonic()) if self.is_paced else 0


@dataclass
class Slices:
    """One path that is asked for piece by piece; clients know it by the id of the first piece."""

    id: str
    path: Generate
    size: int  # poses of a piece
    created_s: float
    asked: int = 0  # poses given to the worker
    sent: int = 0  # of its frames
    made: int = 0  # by pieces that are over
    pieces: list[str] = field(default_factory=list)  # request ids
    first_frame: int | None = None
    last_frame: int | None = None
    ended: RequestState | None = None  # cancelled or failed: no more pieces
    error: dict[str, Any] | None = None

    @property
    def ahead(self) -> int:
        return self.asked - self.sent

    @property
    def is_asked(self) -> bool:
        """There is nothing more to give."""
        return self.ended is not None or self.asked >= len(self.path.poses)

    @property
    def is_over(self) -> bool:
        return self.ended is not None or self.sent >= len(self.path.poses)

    def next_piece(self) -> tuple[str, Generate]:
        """The id and request of the next slice."""
        poses = self.path.poses[self.asked : self.asked + self.size]
        name = self.id if not self.pieces else f"{self.id}.{len(self.pieces)}"
        self.asked += len(poses)
        self.pieces.append(name)
        return name, self.path.model_copy(update={"poses": poses})

    def saw(self, frame: int) -> None:
        """One of its frames went out."""
        self.sent += 1
        self._reaches(frame, frame)

    def piece_over(self, piece: Progress) -> None:
        """One of its pieces is over; what was made of it may not have gone out yet."""
        self.made += piece.done
        if piece.first_frame is not None and piece.last_frame is not None:
            self._reaches(piece.first_frame, piece.last_frame)

    def progress(self, is_over: bool) -> Progress:
        """As if it were one request; `is_over`: and so are its pieces."""
        state = RequestState.RUNNING if self.sent else RequestState.QUEUED
        if is_over:
            state = self.ended or RequestState.DONE
        return Progress(
            id=self.id,
            kind="generate",
            state=state,
            total=len(self.path.poses),
            done=max(self.sent, self.made),
            first_frame=self.first_frame,
            last_frame=self.last_frame,
            error=self.error,
            created_s=self.created_s,
            cancel_requested=self.ended is RequestState.CANCELLED,
        )

    def _reaches(self, first: int, last: int) -> None:
        self.first_frame = first if self.first_frame is None else self.first_frame
        self.last_frame = last if self.last_frame is None else max(last, self.last_frame)


def whole_id(request_id: str) -> str:
    """The id under which a client knows the path that a piece belongs to."""
    return request_id.partition(".")[0]
