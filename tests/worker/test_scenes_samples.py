"""Named worlds exist, are held out and start with a view into the open."""

from __future__ import annotations

import pytest

from worker.scenes.render import render
from worker.scenes.samples import SAMPLES, sample_view
from worker.scenes.scene import HELD_OUT_SEED


@pytest.mark.parametrize("name", list(SAMPLES))
def test_a_sample_is_held_out_and_starts_with_an_open_view(name: str) -> None:
    assert SAMPLES[name].seed >= HELD_OUT_SEED and SAMPLES[name].description
    scene, cameras = sample_view(name, 32, 48)
    frames = render(scene, cameras)
    assert cameras.shape == (1, 1)
    assert frames.depth.median() > 1.2
    assert len(frames.instance.unique()) >= 5


def test_a_sample_has_a_path_and_a_wrong_name_is_told() -> None:
    assert sample_view("doorway", 32, 48, num_frames=4)[1].shape == (1, 4)
    with pytest.raises(ValueError, match="unknown sample 'cellar', one of"):
        sample_view("cellar", 32, 48)
