"""The motion head's stage: windows of walks, a loss that is nearly what is measured."""

import json
from dataclasses import replace

import pytest
import torch

from worker.dynamics_head import MotionConfig, compared, seen_by
from worker.geometry import pool_depth
from worker.train.data import DataConfig, Walks
from worker.train.loop import RunConfig
from worker.train.motion import (
    MOVING_SHARE,
    Batch,
    Scenes,
    as_seen,
    batches,
    iou,
    joined,
    mirrored,
    motion_loss,
    shifted,
    train_motion,
    window,
    worth_seeing,
)
from worker.world import MOTION_WINDOW

HEAD = MotionConfig(look=4, pair=8, widths=(8, 16, 16), num_blocks=1)
GRID = (6, 8)


@pytest.fixture(scope="module")
def lively(tmp_path_factory: pytest.TempPathFactory) -> Walks:
    cfg = DataConfig(4, num_scenes=4, num_frames=6, height=48, width=64, dynamic_share=1.0)
    return Walks(tmp_path_factory.mktemp("lively"), cfg)


@pytest.fixture(scope="module")
def scenes(lively: Walks) -> Scenes:
    return as_seen(lively, torch.full((4, 6, *GRID), 3.0))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_things_move_in_every_walk_that_is_asked_for(lively):
    assert torch.from_numpy(lively.moving[:]).flatten(1).any(1).sum() >= 3


def test_walks_in_which_something_moves_come_first(lively):
    chosen = worth_seeing(lively)
    moves = torch.from_numpy(lively.moving[:]).flatten(1).any(1)
    num = int(moves.sum())
    assert moves[chosen[:num]].all() and not moves[chosen[num:]].any()
    assert len(chosen) <= num + 1


def test_cells_move_from_a_quarter_of_their_pixels_on(lively, scenes):
    chosen = worth_seeing(lively)
    pixels = torch.from_numpy(lively.moving[:])[chosen].float()
    share = pixels.view(len(chosen), 6, 6, 8, 8, 8).mean((3, 5))
    assert torch.equal(scenes.moving, share >= MOVING_SHARE) and scenes.moving.any()
    depth = pool_depth(torch.from_numpy(lively.depth[int(chosen[0])]).float(), (12, 16)).half()
    assert torch.equal(scenes.depth[0], depth)  # movers keep theirs


def test_a_window_is_some_views_of_one_walk_each_beside_the_others(scenes):
    counts = set()
    for seed in range(40):
        one = window(scenes, generator(seed))
        n = len(one.depth)
        counts.add(n)
        assert one.pictures.shape == (n, 3, 24, 32) and one.depth.shape == (n, 12, 16)
        assert one.moving.shape == (n, *GRID) and one.others.shape == (n, n - 1)
        assert all(i not in row for i, row in enumerate(one.others.tolist()))
        assert one.pictures.abs().max() <= 1 and (one.depth >= 0).all()
    assert counts == set(range(1, MOTION_WINDOW + 1))


def test_windows_depend_on_the_seed_alone(scenes):
    make = batches([scenes], 3)
    one, same, other = make(generator()), make(generator()), make(generator(1))
    assert torch.equal(one.pictures, same.pictures)
    assert one.pictures.shape != other.pictures.shape or not torch.equal(
        one.pictures, other.pictures
    )


def test_windows_of_any_length_make_a_batch(scenes):
    parts = [window(scenes, generator(seed)) for seed in range(8)]
    batch = joined(parts)
    assert int(batch.known.sum()) == sum(part.known.numel() for part in parts)
    last = len(batch.depth) - len(parts[-1].depth)
    own = batch.others[last:][batch.known[last:]]
    assert torch.equal(own, (parts[-1].others + last).flatten())
    assert int(batch.others.max()) < len(batch.depth)


def agreement(one: Batch) -> torch.Tensor:
    """The share of each other view that agrees in depth."""
    at, z = seen_by(one.depth, one.cameras.resized(12, 16), one.others)
    nothing = torch.zeros(len(one.depth), 1, 12, 16)
    planes = compared(nothing, one.depth, one.others, at, z, one.known)
    ratio, measured, _ = planes[:, :, -3:].unbind(2)
    return ((ratio.abs() < 0.05) & (measured > 0)).sum((2, 3)) / measured.sum((2, 3)).clamp(min=1)


def test_in_a_mirror_still_things_still_fit(scenes):
    for seed in range(20):
        one = window(replace(scenes, predicted=None), generator(seed))
        if len(one.depth) > 1:
            torch.testing.assert_close(agreement(mirrored(one)), agreement(one), atol=0.05, rtol=0)


def test_poses_that_are_off_stay_rigid(scenes):
    views = scenes.cameras[0]
    moved = shifted(views, True, generator())
    turn = moved.world_from_camera[:, :3, :3]
    eye = torch.eye(3, dtype=torch.float64).expand_as(turn)
    torch.testing.assert_close(turn @ turn.transpose(1, 2), eye)
    assert not torch.equal(moved.world_from_camera, views.world_from_camera)
    assert shifted(views, False, generator()) is views


def test_walks_in_which_nothing_moves_are_refused(scenes, tmp_path):
    still = replace(scenes, moving=torch.zeros_like(scenes.moving))
    with pytest.raises(ValueError, match="nothing moves"):
        train_motion(RunConfig(minutes=1), [still], tmp_path, HEAD)


def test_intersection_over_union_of_known_masks():
    moving = torch.zeros(1, 4, 4, dtype=torch.bool)
    moving[0, :2] = True
    said = torch.zeros_like(moving)
    assert iou(said, moving) == 0.0
    said[0, 1:3] = True
    assert iou(said, moving) == pytest.approx(4 / 12)
    assert iou(said, torch.zeros_like(moving)) == 0.0
    assert iou(torch.zeros_like(moving), torch.zeros_like(moving)) == 1.0


def test_the_truth_costs_least(scenes):
    class Saying(torch.nn.Module):
        def __init__(self, logits: torch.Tensor) -> None:
            super().__init__()
            self.logits = logits

        def forward(self, *inputs: object) -> torch.Tensor:
            return self.logits

    batch = batches([scenes], 6)(generator())
    target = batch.moving
    assert target.any()
    right, wrong, unsure = (8 * (2 * target - 1), -8 * (2 * target - 1), 0 * target)
    losses = [float(motion_loss(Saying(logits), batch)[0]) for logits in (right, unsure, wrong)]
    assert losses[0] < 0.1 < losses[1] < losses[2]


def test_training_finds_what_moves(scenes, tmp_path):
    cfg = RunConfig(
        minutes=1e9,
        num_steps=60,
        batch_size=4,
        learning_rate=3e-3,
        warmup_steps=4,
        log_every=20,
        num_workers=0,
    )
    head, progress = train_motion(cfg, [scenes], tmp_path, HEAD)
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert progress.step == 60 and head.cfg == HEAD
    assert log[-1]["loss"] < log[0]["loss"]
