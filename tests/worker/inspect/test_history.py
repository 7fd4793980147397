"""A stored World replayed: the same memory, points in the colours of their pictures."""

import numpy as np
import pytest
import torch
from boxes import room_depth
from stored_world import HEIGHT, WIDTH, walked

from service.errors import SegmentCorrupt
from worker.inspect.history import GREY, History, pixels_of, replay
from worker.memory import Memory


@pytest.fixture(scope="module", params=["latent", "rgb", "null"])
def history(request: pytest.FixtureRequest) -> tuple[History, Memory]:
    memory, segments = walked(request.param)
    return replay(request.param, segments), memory


def test_the_memory_is_the_one_that_was_stored(history):
    found, memory = history
    assert found.memory.stats() == memory.stats()
    for name, value in memory.state().items():
        assert torch.equal(found.memory.state()[name].nan_to_num(), value.nan_to_num()), name


def test_every_view_is_accounted_for(history):
    found, _ = history
    assert [one.frame for one in found.sources] == [0, 1, 2, None]
    assert [one.observed for one in found.sources] == [True, False, False, True]
    sizes = [one.picture.shape[:2] for one in found.sources]
    assert sizes == [*3 * [(HEIGHT, WIDTH)], (HEIGHT // 8, WIDTH // 8)]
    assert [size.num_sources for size in found.sizes] == [1, 3, 4]
    assert found.cameras.world_from_camera.shape == (4, 4, 4)
    assert found.sources[0].coverage == 0
    added = sum(one.num_written for one in found.sources)
    assert added >= found.memory.stats().num_points == found.sizes[-1].num_points


def test_points_stand_where_they_were_seen_in_the_colour_that_was_seen(history):
    found, memory = history
    cloud = found.cloud()
    assert len(cloud.positions) == memory.stats().num_points == len(cloud.quality)
    first = cloud.source == 0
    if not len(cloud.source):
        return
    assert first.any()
    picture = found.sources[0].picture
    seen = picture.reshape(-1, 3).astype(int)
    low, high = seen.mean(0) - 2 * seen.std(0), seen.mean(0) + 2 * seen.std(0)
    mean = cloud.colours[first].mean(0)  # of the cells' middles, which differ from other pixels
    assert (mean > low).all() and (mean < high).all() and (mean != GREY).any()
    assert (cloud.colours[cloud.source == 3] == [200, 0, 0]).all()
    line, column = pixels_of(torch.from_numpy(cloud.positions[first]), found.cameras[0])
    truth = room_depth(found.cameras[:1])[0].numpy()[line, column]
    eye = found.cameras.world_from_camera[0, :3, 3].numpy()
    forward = found.cameras.world_from_camera[0, :3, 2].numpy()
    depth = (cloud.positions[first] - eye) @ forward
    assert np.median(np.abs(depth - truth) / truth) < 0.05


def test_a_world_without_a_frame_is_refused():
    with pytest.raises(SegmentCorrupt, match="no frame yet"):
        replay("latent", [])
