"""A worker without a model: takes requests through the real control plane and answers each pose
with a plain picture whose colour is the frame's number. No segments: what leaves the stream is
gone."""

from __future__ import annotations

import asyncio
import io
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import numpy as np
from PIL import Image

from service.control.frames import Frame
from service.control.leases import Commit, Leases, Owned
from service.control.plane import ControlPlane
from service.control.requests import Entry, Generate, Observe, Progress, RequestState, Rewind
from service.control.wake import WakeQueue
from service.control.workers import WorkerRecord
from service.errors import LeaseLost
from service.settings import Settings


class FakeWorker:
    """`step_s`: how long a frame takes; a path that begins beyond `fails_beyond_m` fails."""

    def __init__(
        self, settings: Settings, step_s: float = 0.0, fails_beyond_m: float = 5000.0
    ) -> None:
        self.settings, self.step_s, self.fails_beyond_m = settings, step_s, fails_beyond_m
        self.id = f"fake-{secrets.token_hex(4)}"

    async def run(self) -> None:
        control = await ControlPlane.open(self.settings)
        leases = Leases(control.redis, self.id, self.settings.lease_s, self.settings.frames_kept)
        queue = WakeQueue(control.redis, self.id, self.settings.lease_s)
        try:
            await queue.open()
            while True:
                await control.workers.beat(self._record())
                for wake in await queue.pull(4, 0.05):
                    await self._serve(control, leases, wake.session)
                    await queue.ack([wake.message])
        finally:
            await control.workers.leave(self.id)
            await control.close()

    async def _serve(self, control: ControlPlane, leases: Leases, session: str) -> None:
        lease = await leases.acquire(session)
        while lease is not None:
            try:
                is_over = await self._one(control, leases, session, lease)
            except LeaseLost:  # it expired, on a busy machine, or the session is gone
                lease = await leases.acquire(session)
                continue
            if is_over:
                return

    async def _one(self, control: ControlPlane, leases: Leases, session: str, lease: str) -> bool:
        """Whether there was nothing left to do."""
        await leases.renew({session: lease})
        owned = await leases.load(session)
        for entry in owned.entries[:1]:
            await self._answer(leases, owned, entry, session, lease)
        await control.workers.beat(self._record())
        return not owned.entries and await leases.release(session, lease) != "ahead"

    async def _answer(
        self, leases: Leases, owned: Owned, entry: Entry, session: str, lease: str
    ) -> None:
        """One frame of the first entry, or its failure."""
        await asyncio.sleep(self.step_s)
        message, done, number = entry.message, owned.cursor_done, owned.session.next_frame
        if isinstance(message, Rewind):
            await self._rewind(leases, owned, entry, session, lease)
            return
        poses = message.poses if isinstance(message, Generate) else [message.pose]
        progress = owned.progress.get(entry.id)
        if abs(poses[0][3]) > self.fails_beyond_m or (progress and progress.cancel_requested):
            state = RequestState.CANCELLED
            if not (progress and progress.cancel_requested):
                state = RequestState.FAILED
            await self._end(leases, owned, entry, session, lease, state)
            return
        frames = [] if isinstance(message, Observe) else [self._frame(owned, entry, poses[done])]
        done += 1
        final = done >= len(poses)
        if progress is not None:
            progress = progress.model_copy(
                update={
                    "state": RequestState.DONE if final else RequestState.RUNNING,
                    "done": done,
                    "first_frame": number if progress.first_frame is None else progress.first_frame,
                    "last_frame": number,
                }
            )
        commit = Commit(
            tip=owned.session.tip,
            cursor=entry.entry if final else owned.cursor,
            cursor_done=0 if final else done,
            request_id=entry.id,
            progress=progress,
            frames=frames,
            record={
                "next_frame": number + len(frames),
                "num_points": 100 * (number + 1),
                "num_bytes": 5000 * (number + 1),
                "coverage": 0.5,
                "weights": "fake@0",
            },
        )
        await leases.commit(session, lease, commit)

    async def _rewind(
        self, leases: Leases, owned: Owned, entry: Entry, session: str, lease: str
    ) -> None:
        """To a frame; there is no manifest to cut."""
        assert isinstance(entry.message, Rewind) and entry.message.frame is not None
        first, branch = entry.message.frame + 1, owned.session.branch + 1
        done = {"state": RequestState.DONE, "result": {"branch": branch, "num_frames": first}}
        commit = Commit(
            tip=owned.session.tip,
            cursor=entry.entry,
            cursor_done=0,
            request_id=entry.id,
            progress=owned.progress[entry.id].model_copy(update=done),
            record={"branch": branch, "branch_first_frame": first, "next_frame": first},
        )
        await leases.commit(session, lease, commit)

    async def _end(
        self,
        leases: Leases,
        owned: Owned,
        entry: Entry,
        session: str,
        lease: str,
        state: RequestState,
    ) -> None:
        progress: Progress | None = owned.progress.get(entry.id)
        if progress is not None:
            problem = {"title": "The model could not do this", "detail": "too far away"}
            error = problem if state is RequestState.FAILED else None
            progress = progress.model_copy(update={"state": state, "error": error})
        commit = Commit(owned.session.tip, entry.entry, 0, entry.id, progress)
        await leases.commit(session, lease, commit)

    def _frame(self, owned: Owned, entry: Entry, pose: list[float]) -> Frame:
        session, message = owned.session, entry.message
        lens, number = session.intrinsics, session.next_frame
        return Frame(
            frame=number,
            branch=session.branch,
            camera=getattr(message, "camera", 0),
            pose=pose,
            coverage=0.5,
            num_points=100 * (number + 1),
            num_bytes=5000 * (number + 1),
            request_id=entry.id,
            kind=message.kind,
            pose_index=owned.cursor_done,
            sequence=getattr(message, "sequence", None),
            client_time_ms=getattr(message, "client_time_ms", None),
            timings_ms={"step": 1000 * self.step_s},
            media_type="image/webp",
            created_s=time.time(),
            image=picture(number, lens.width, lens.height),
        )

    def _record(self) -> WorkerRecord:
        return WorkerRecord(
            id=self.id,
            weights="fake@0",
            backbone="fake",
            device="cpu",
            memories=["latent", "null"],
            capacity=1,
            started_s=time.time(),
        )


def picture(number: int, width: int, height: int) -> bytes:
    """A plain WebP; its red channel is the frame's number."""
    pixels = np.full((height, width, 3), (number % 256, 80, 160), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()


@asynccontextmanager
async def working(worker: FakeWorker) -> AsyncIterator[FakeWorker]:
    """The worker runs inside the block; what ends it early is raised at the end of the block."""
    task = asyncio.create_task(worker.run())
    try:
        yield worker
    finally:
        while not task.done():  # the Redis client loses a cancellation now and then
            task.cancel()
            await asyncio.wait([task], timeout=0.2)
        with suppress(asyncio.CancelledError):
            task.result()
