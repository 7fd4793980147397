"""A World is the replay of its increments."""

import math

import tiny
import torch
from boxes import camera, orbit

from worker.memory import create_memory
from worker.memory.base import empty_delta
from worker.world import Increment, Sight, World

GRID = (8, 12)


def increment(value: float, num: int, shown: tuple[int, ...]) -> Increment:
    return Increment(
        delta=empty_delta(tiny.CHANNELS),
        frame_indices=shown,
        images=torch.zeros(num, 64, 96, 3, dtype=torch.uint8),
        cameras=orbit(8, 64, 96)[:num],
        latents=torch.full((num, tiny.CHANNELS, *GRID), value, dtype=torch.bfloat16),
        coverage=torch.zeros(num, *GRID),
        timings_ms={},
    )


def world(num_recent: int) -> World:
    return World(create_memory("null", tiny.CHANNELS, GRID), seed=0, num_recent=num_recent)


def test_frames_and_sources_are_counted_apart():
    state = world(1)
    for one in (increment(0, 1, (0,)), increment(1, 1, ()), increment(2, 4, (1, 2, 3, 4))):
        state.apply(one)
    assert (state.next_frame, state.next_source) == (5, 6)


def test_the_latest_views_are_kept_oldest_first():
    state = world(3)
    state.apply(increment(1, 1, (0,)))
    assert state.latents is not None
    assert state.latents[:, 0, 0, 0].tolist() == [1, 1, 1]  # repeated while there are too few
    state.apply(increment(2, 2, (1, 2)))
    state.apply(increment(3, 1, (3,)))
    assert state.latents[:, 0, 0, 0].tolist() == [2, 2, 3]
    assert state.cameras is not None and state.cameras.shape == (3,)
    poses = orbit(8).world_from_camera
    assert torch.equal(state.cameras.world_from_camera, poses[[0, 1, 0]])


def test_pictures_that_differ_by_a_turn_of_six_cells_are_apart_by_five_they_are_not():
    def sight(turned_rad: float) -> Sight:
        views = camera((0, 0, 0), (math.sin(turned_rad), 0, math.cos(turned_rad)), 640, 960)
        measured = torch.full((1, 160, 240), 2.0, dtype=torch.half)
        return Sight(None, measured, torch.zeros(1, tiny.CHANNELS, 80, 120), views, 0)

    focal = float(sight(0).camera.resized(80, 120).intrinsics[0, 0])
    assert sight(6 / focal).is_apart_from(sight(0))
    assert not sight(5 / focal).is_apart_from(sight(0))


def test_a_chunk_longer_than_what_is_kept_leaves_its_last_view():
    state = world(1)
    state.apply(increment(1, 4, (0, 1, 2, 3)))
    assert state.latents is not None and state.cameras is not None
    assert len(state.latents) == 1
    assert torch.equal(state.cameras.world_from_camera[0], orbit(8).world_from_camera[3])
