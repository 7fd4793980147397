"""Rendered walks on disk: what they hold, and how they go on after an interruption."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from worker.train.data import SCENES_PER_CALL, DataConfig, Walks, window

SMALL = DataConfig(first_seed=3, num_scenes=SCENES_PER_CALL + 1, num_frames=2, height=32, width=48)
ARRAYS = ("rgb", "depth", "moving", "poses", "intrinsics")


def arrays(walks: Walks) -> dict[str, np.ndarray]:
    return {name: np.array(getattr(walks, name)) for name in ARRAYS}


def test_a_set_has_pictures_depths_and_cameras(walks):
    scenes, frames = torch.tensor([1, 0, 1]), torch.tensor([[0, 3], [9, 1], [2, 2]])
    images, depths = walks.images(scenes, frames), walks.depths(scenes, frames)
    cameras = walks.cameras(scenes, frames)
    assert images.shape == (3, 2, 3, 48, 64) and images.dtype == torch.float32
    assert images.min() >= -1 and images.max() <= 1 and images.std() > 0.1
    assert depths.shape == (3, 2, 48, 64) and (depths >= 0).all() and (depths < 50).all()
    assert (depths > 0.1).float().mean() > 0.5  # the rest is sky
    masks = walks.motion_masks(scenes, frames)
    assert masks.shape == depths.shape and masks.dtype == torch.bool
    assert (depths[masks] > 0).all() and walks.moving.mean() < 0.5
    assert cameras.shape == (3, 2) and (cameras.height, cameras.width) == (48, 64)
    assert torch.equal(images[2, 0], images[2, 1]) and not torch.equal(images[0, 0], images[0, 1])


def test_rows_and_frames_are_those_asked_for(walks):
    view = walks.cameras(torch.tensor([1]), torch.tensor([[7]]))
    assert view.shape == (1, 1)
    assert np.array_equal(view.world_from_camera[0, 0].numpy(), walks.poses[1, 7])
    picture = walks.images(torch.tensor([1]), torch.tensor([[7]]))[0, 0]
    levels = ((picture + 1) * 127.5).round().byte()
    assert np.array_equal(levels.numpy(), walks.rgb[1, 7])


def test_the_camera_moves_a_little_from_frame_to_frame(walks):
    steps = np.linalg.norm(np.diff(walks.poses[:, :, :3, 3], axis=1), axis=-1)
    assert 0 < steps.mean() < 0.5 and steps.max() < 1.0


def test_an_interrupted_set_goes_on_where_it_stopped(tmp_path):
    walks = Walks(tmp_path / "set", SMALL)
    whole = arrays(walks)
    done = SCENES_PER_CALL
    for name in ARRAYS:  # as if the last call had not been
        getattr(walks, name)[done:] = 0
    walks.rgb[0] = 77  # what is done is not rendered again
    (tmp_path / "set" / "progress.json").write_text(json.dumps({"scenes": done}))
    again = arrays(Walks(tmp_path / "set", SMALL))
    assert (again["rgb"][0] == 77).all()
    for name in ARRAYS:
        assert np.array_equal(again[name][done:], whole[name][done:]), name
    counter = json.loads((tmp_path / "set" / "progress.json").read_text())
    assert counter == {"scenes": SMALL.num_scenes}


def test_the_counter_is_never_half_written(tmp_path, monkeypatch):
    """Nobody writes to it: it is put in the place of the one before."""
    write = Path.write_text

    def torn(path: Path, text: str) -> int:
        write(path, text[:5])
        raise KeyboardInterrupt

    whole = Walks(tmp_path / "set", replace(SMALL, num_scenes=1))
    (whole.folder / "progress.json").write_text(json.dumps({"scenes": 0}))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "write_text", torn)
        Walks(whole.folder, whole.cfg)
    assert json.loads((whole.folder / "progress.json").read_text()) == {"scenes": 0}
    Walks(whole.folder, whole.cfg)
    assert json.loads((whole.folder / "progress.json").read_text()) == {"scenes": 1}


def test_a_finished_set_is_opened_and_not_rendered(walks):
    before = [path.stat().st_mtime_ns for path in sorted(walks.folder.glob("progress.json"))]
    again = Walks(walks.folder, walks.cfg)
    assert np.array_equal(again.rgb, walks.rgb)
    assert [p.stat().st_mtime_ns for p in sorted(walks.folder.glob("progress.json"))] == before


def test_a_set_of_other_settings_is_refused(walks):
    for name, value, before in (("num_scenes", 3, 2), ("first_seed", 1, 21), ("every", 2, 1)):
        changed = f"walks0 can't go on, as {name} was {before} and is {value}: go back to that"
        with pytest.raises(ValueError, match=changed):
            Walks(walks.folder, replace(walks.cfg, **{name: value}))
    assert Walks(walks.folder, walks.cfg).rgb.shape == walks.rgb.shape


def test_a_set_that_does_not_say_what_it_is_is_refused(tmp_path):
    Walks(tmp_path / "set", replace(SMALL, num_scenes=1))
    (tmp_path / "set" / "settings.json").unlink()  # as before there was one
    with pytest.raises(ValueError, match=r"version was not given and is \d"):
        Walks(tmp_path / "set", replace(SMALL, num_scenes=1))


def test_a_window_holds_distinct_frames_in_random_order():
    frames = window(8, 3, torch.Generator().manual_seed(0), batch=200)
    assert frames.shape == (200, 3) and (frames.min(), frames.max()) == (0, 7)
    assert all(len(set(row)) == 3 for row in frames.tolist())
    assert len({tuple(row) for row in frames.tolist()}) > 100
    assert torch.equal(frames, window(8, 3, torch.Generator().manual_seed(0), batch=200))


def test_where_frames_are_left_out_things_move_as_far_as_the_camera_does(tmp_path):
    size = DataConfig(3, SCENES_PER_CALL, 6, 32, 48, dynamic_share=1.0)
    every = arrays(Walks(tmp_path / "every", size))
    third = arrays(Walks(tmp_path / "third", replace(size, num_frames=2, every=3)))
    assert every["moving"].any()
    for name in ARRAYS:
        assert np.array_equal(third[name], every[name][:, ::3]), name
