"""The pictures are written, and show what they should."""

import numpy as np
import torch
from PIL import Image
from stored_world import walked

from worker.geometry import cat_cameras
from worker.inspect.figures import (
    HEADROOM_M,
    MAX_DRAWN,
    points_by_source,
    seen_from_above,
    top_view,
    views,
    write_figures,
)
from worker.inspect.history import History, replay


def history(memory: str = "latent") -> History:
    return replay(memory, walked(memory)[1])


def test_all_pictures_are_written(tmp_path):
    paths = write_figures(history(), tmp_path / "new", "a title")
    names = [path.name for path in paths]
    assert names == ["top.png", "views.png", "coverage.png", "sources.png"]
    for path in paths:
        picture = np.asarray(Image.open(path).convert("RGB"))
        assert min(picture.shape[:2]) > 300 and picture.std() > 10, path.name


def test_the_top_view_looks_under_the_ceiling_and_draws_the_highest_last():
    one = history()
    cloud = seen_from_above(one)
    eye_y = float(one.cameras.world_from_camera[:, 1, 3].min())
    heights = cloud.positions[:, 1]
    assert (heights > eye_y - HEADROOM_M).all() and (np.diff(heights) <= 0).all()
    assert 0 < len(heights) < one.memory.stats().num_points <= MAX_DRAWN
    panels = top_view(one).axes
    assert panels[0].get_title() == "colours of the pictures"
    drawn = panels[0].collections[0].get_offsets()
    np.testing.assert_allclose(drawn, cloud.positions[:, [0, 2]])


def test_points_by_source_counts_what_is_left():
    one = history()
    bars = [patch.get_height() for patch in points_by_source(one).axes[0].patches]
    left = torch.bincount(one.memory.state()["source"].long(), minlength=len(one.sources))
    count = len(one.sources)
    assert bars[:count] == [source.num_written for source in one.sources]
    assert bars[count : 2 * count] == left.tolist()


def test_a_memory_of_nothing_can_be_looked_at():
    one = history("null")
    assert len(top_view(one).axes) == 4 and len(views(one).axes[0].images) == 1


def test_a_long_walk_shows_six_of_its_views():
    one = history()
    many = History(one.memory, one.sources[:3] * 9, cat_cameras([one.cameras[:3]] * 9), one.sizes)
    titles = [axes.get_title() for axes in views(many).axes]
    assert sum(title.startswith("frame") for title in titles) == 6
