"""The torch side of the loop: Worlds opened, restored, stepped; increments made into segments.

Everything here blocks. `step` is called once at a time, the rest from threads beside it: restoring
touches only Worlds that nobody steps, encoding and packing only increments, which never change and
lie in the host's memory.

Axis legend: t poses, H W pixels.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.control.frames import Frame
from service.control.requests import Init, LivePose, Observe
from service.control.sessions import Intrinsics, Session
from service.errors import GenerationFailed, SegmentCorrupt
from service.store.segments import SegmentHeader, Upload
from worker.engine import Engine
from worker.geometry import Cameras
from worker.memory.merge import merged
from worker.observation import Looks
from worker.serving.commits import WorldSize
from worker.serving.scheduler import Job
from worker.serving.snapshot import encode_image, pack_segment, unpack_segment
from worker.world import Increment, World


@dataclass(frozen=True)
class Encoding:
    format: Literal["webp", "jpeg"] = "webp"
    quality: int = 85

    @property
    def media_type(self) -> str:
        return f"image/{self.format}"


@dataclass(frozen=True)
class Made:
    """What one job of a step made, in the host's memory, and its World's size right then."""

    increment: Increment
    size: WorldSize
    held_bytes: int  # what the World takes while it is at hand


class Runner:
    def __init__(self, engine: Engine, encoding: Encoding) -> None:
        self.engine, self._encoding = engine, encoding

    @property
    def weights(self) -> str:
        return self.engine.backbone.weights

    def check(self, session: Session) -> None:
        """Raise GenerationFailed if these weights and this frame size can't continue that World."""
        size = (session.intrinsics.height, session.intrinsics.width)
        ours = (self.engine.cfg.height, self.engine.cfg.width)
        if size != ours:
            raise GenerationFailed(
                f"the session has frames of {size[1]} x {size[0]} pixels, this worker makes "
                f"{ours[1]} x {ours[0]}: set MIRAGE_FRAME_WIDTH and MIRAGE_FRAME_HEIGHT alike on "
                "gateways and workers"
            )
        if session.weights not in {"", self.weights} | self.engine.backbone.continues:
            raise GenerationFailed(
                f"the world was made with {session.weights}, this worker has {self.weights}"
            )

    def restore(self, session: Session, segments: Sequence[bytes]) -> World:
        """A World from all of its segments in order; an empty one from none.

        Raises SegmentCorrupt for segments that are no World, which an import may have brought.
        """
        self.check(session)
        world = self.engine.open(session.seed, session.memory)
        device = self.engine.cfg.device
        increments = [unpack_segment(data, device)[1] for data in segments]
        try:
            for delta in merged([increment.delta for increment in increments]):
                world.memory.apply(delta)
            for increment in increments:
                world.apply(increment)
        except torch.OutOfMemoryError:
            raise
        except (ValueError, RuntimeError, IndexError) as error:
            raise SegmentCorrupt(f"the segments of {session.id} are no world: {error}") from error
        return world

    def step(
        self, worlds: Sequence[World], jobs: Sequence[Job], uploads: Sequence[Sequence[Upload]]
    ) -> list[list[Made]]:
        """One chunk for each session or its next observations, batched."""
        if jobs[0].what == "observe":
            return self._observe_all(worlds, jobs, uploads)
        views = [cameras(job.session.intrinsics, job.poses) for job in jobs]
        made = self.engine.step(worlds, views)
        return [[_made(*pair)] for pair in zip(made, worlds, strict=True)]

    def _observe_all(
        self, worlds: Sequence[World], jobs: Sequence[Job], uploads: Sequence[Sequence[Upload]]
    ) -> list[list[Made]]:
        """Pictures are encoded together, then written one after the other."""
        started_s = time.perf_counter()
        every = [one for some in uploads for one in some]
        pictures = [torch.from_numpy(one.image) for one in every]
        looks = iter(self.engine.encode(pictures, [one.depth is None for one in every]))
        each_ms = 1e3 * (time.perf_counter() - started_s) / len(every)
        found = []
        for world, first, some in zip(worlds, jobs, uploads, strict=True):
            pairs = zip((first, *first.more), some, strict=True)
            found.append([
                _made(self._observe(world, job, upload, next(looks), each_ms), world)
                for job, upload in pairs
            ])  # fmt: skip
        return found

    def _observe(
        self, world: World, job: Job, upload: Upload, looks: Looks, encode_ms: float
    ) -> Increment:
        depth = None if upload.depth is None else torch.from_numpy(upload.depth)
        mask = None if upload.mask is None else torch.from_numpy(upload.mask)
        views = cameras(job.session.intrinsics, job.poses)
        message = job.entry.message
        centre_m = message.scale_m if isinstance(message, Init | Observe) else None
        increment = self.engine.observe(
            world, torch.from_numpy(upload.image), views, depth, mask, centre_m, looks
        )
        increment.timings_ms["encode"] = encode_ms
        return increment

    def free_memory(self) -> None:
        """Give the device back what no World holds any more."""
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    def frames(self, job: Job, increment: Increment, size: WorldSize) -> list[Frame]:
        """The frames that an increment shows, each encoded once."""
        shown = np.ascontiguousarray(increment.images.numpy()[: len(increment.frame_indices)])
        started, encoding = time.perf_counter(), self._encoding
        images = [encode_image(one, encoding.format, encoding.quality) for one in shown]
        timings_ms = increment.timings_ms | {"compress": 1e3 * (time.perf_counter() - started)}
        timings_ms = {name: round(value, 3) for name, value in timings_ms.items()}
        message, session, media_type = job.entry.message, job.session, self._encoding.media_type
        live = message if isinstance(message, LivePose) else None
        coverage = means(increment.coverage.numpy())
        return [
            Frame(
                frame=frame,
                branch=session.branch,
                camera=getattr(message, "camera", 0),
                pose=job.poses[i],
                coverage=coverage[i],
                num_points=size.num_points,
                num_bytes=size.num_bytes,
                request_id=job.entry.id,
                kind=message.kind,
                pose_index=job.first_pose + i,
                sequence=None if live is None else live.sequence,
                client_time_ms=getattr(message, "client_time_ms", None),
                timings_ms=timings_ms,
                media_type=media_type,
                created_s=time.time(),
                image=images[i],
            )
            for i, frame in enumerate(increment.frame_indices)
        ]

    def pack(self, job: Job, increment: Increment, frames: Sequence[Frame]) -> bytes:
        """The segment of an increment."""
        session = job.session
        header = SegmentHeader(
            session=session.id,
            index=session.num_segments,
            parent=session.tip,
            kind=job.entry.message.kind,
            weights=self.weights,
            branch=session.branch,
            frame_indices=list(increment.frame_indices),
            frames=[],
            intrinsics=session.intrinsics.model_dump(),
            created_s=time.time(),
        )
        images, metas = [frame.image for frame in frames], [frame.text for frame in frames]
        return pack_segment(header, increment, images, metas)


def cameras(intrinsics: Intrinsics, poses: Sequence[Sequence[float]]) -> Cameras:
    """Cameras (t,) of flat row-major world_from_camera poses."""
    lens = (intrinsics.fx, intrinsics.fy, intrinsics.cx, intrinsics.cy)
    lenses = _lenses(lens, len(poses))
    transforms = torch.from_numpy(np.array(poses, np.float64).reshape(-1, 4, 4))
    return Cameras(lenses, transforms, intrinsics.height, intrinsics.width)


@lru_cache(maxsize=1024)
def _lenses(lens: tuple[float, float, float, float], count: int) -> Tensor:
    """(count, 4) that nobody writes to: a session keeps its lens."""
    return torch.tensor([lens] * count, dtype=torch.float64)


def means(planes: NDArray[np.float32]) -> list[float]:
    """Of (t, h, w) over h and w. By numpy, whose way to a few numbers is shorter than torch's."""
    return list((np.add.reduce(planes, (1, 2)) / np.float32(planes[0].size)).tolist())


def _made(increment: Increment, world: World) -> Made:
    """With the World's size as it is now."""
    return Made(increment.to("cpu"), *_sizes(world))


def _sizes(world: World) -> tuple[WorldSize, int]:
    stats = world.memory.stats()
    beside = world.num_bytes
    size = WorldSize(world.next_frame, stats.num_points, stats.num_bytes + beside)
    return size, stats.held_bytes + beside


def world_bytes(world: World) -> int:
    """What a World takes while it is at hand: its memory and what it holds beside that."""
    return _sizes(world)[1]
