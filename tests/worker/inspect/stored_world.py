"""A small World with its segments, as the store has them."""

from __future__ import annotations

import tiny
import torch
from boxes import orbit, room_depth

from service.store.segments import FrameMeta, SegmentHeader
from worker.geometry import Cameras
from worker.memory import Memory
from worker.serving.snapshot import encode_image, pack_segment
from worker.world import Increment

HEIGHT, WIDTH = tiny.HEIGHT, tiny.WIDTH


def meta(frame: int) -> FrameMeta:
    return FrameMeta(
        frame=frame, branch=1, pose=[0.0] * 16, coverage=1.0, request_id="r", kind="generate",
        media_type="image/webp", created_s=1.0,
    )  # fmt: skip


def packed(kind: str, increment: Increment, index: int) -> bytes:
    images = [
        encode_image(increment.images[i].contiguous().numpy(), "webp", 90)
        for i in range(len(increment.frame_indices))
    ]
    header = SegmentHeader(
        session="s", index=index, parent="", kind=kind, weights="tiny@0", branch=1,
        frame_indices=list(increment.frame_indices), created_s=1.0,
        frames=[meta(frame) for frame in increment.frame_indices],
        intrinsics={"fx": 50, "fy": 50, "cx": 48, "cy": 32, "width": WIDTH, "height": HEIGHT},
    )  # fmt: skip
    return pack_segment(header, increment, images)


def views(*numbers: int) -> Cameras:
    return orbit(12, HEIGHT, WIDTH)[list(numbers)]


def walked(memory: str) -> tuple[Memory, list[bytes]]:
    """A red first view, a chunk of two frames, a second observation that is not shown."""
    engine = tiny.engine()
    world = engine.open(1, memory)
    red = torch.zeros(HEIGHT, WIDTH, 3, dtype=torch.uint8)
    red[..., 0] = 200
    increments = [("init", engine.observe(world, red, views(0), room_depth(views(0))[0]))]
    increments += [("generate", one) for one in engine.step([world], [views(1, 2)])]
    increments += [("observe", engine.observe(world, red, views(6), room_depth(views(6))[0]))]
    segments = [packed(kind, one, i) for i, (kind, one) in enumerate(increments)]
    return world.memory, segments
