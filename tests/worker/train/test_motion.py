"""The motion head's stage: samples from real memories, a loss that is nearly what is measured."""

import json

import pytest
import tiny
import torch

from worker.dynamics_head import NUM_SCALARS, MotionConfig
from worker.train.data import DataConfig, Walks
from worker.train.latents import encode_walks
from worker.train.loop import RunConfig
from worker.train.motion import (
    MOVING_SHARE,
    Samples,
    Views,
    gather_views,
    iou,
    make_samples,
    motion_loss,
    pick_scenes,
    train_motion,
    true_cells,
    validation_iou,
)

HEAD = MotionConfig(tiny.CHANNELS, (8, 16), 1)
GRID = (6, 8)


@pytest.fixture(scope="module")
def lively(tmp_path_factory: pytest.TempPathFactory) -> Walks:
    cfg = DataConfig(first_seed=4, num_scenes=4, num_frames=6, height=48, width=64)
    return Walks(tmp_path_factory.mktemp("lively"), cfg)


@pytest.fixture(scope="module")
def views(lively: Walks) -> Views:
    walks = encode_walks(tiny.modules()[0], lively)
    return gather_views(lively, walks, torch.full(walks.latents[:, :, 0].shape, 3.0))


@pytest.fixture(scope="module")
def samples(views: Views) -> Samples:
    return make_samples(views, 24, seed=0)


def test_walks_in_which_something_moves_come_first(lively, views):
    scenes = pick_scenes(lively, still_share=1.0)
    moves = torch.from_numpy(lively.moving[:]).flatten(1).any(1)
    assert sorted(scenes.tolist()) == [0, 1, 2, 3]
    num = int(moves.sum())
    assert moves[scenes[:num]].all() and not moves[scenes[num:]].any()
    assert num <= len(views.latents) <= len(scenes)


def test_cells_move_from_a_quarter_of_their_pixels_on(lively):
    depth, cells = true_cells(lively, torch.arange(4), GRID)
    assert cells.shape == depth.shape == (4, 6, *GRID) and cells.any() and not cells.all()
    pixels = torch.from_numpy(lively.moving[:]).float().view(4, 6, 6, 8, 8, 8).mean((3, 5))
    assert torch.equal(cells, pixels >= MOVING_SHARE)
    assert (depth[cells] > 0).all()  # movers keep their depth


def test_samples_are_evidence_with_labels(samples):
    assert samples.evidence.shape == (24, 3 * tiny.CHANNELS + NUM_SCALARS, *GRID)
    assert samples.moving.shape == (24, *GRID) and samples.moving.dtype == torch.bool
    assert samples.evidence.isfinite().all() and samples.moving.any()
    seen = samples.evidence[:, 3 * tiny.CHANNELS].float().mean((1, 2))
    assert (seen > 0.3).float().mean() > 0.5  # most views were preceded by one nearby


def test_samples_depend_on_the_seed_alone(views, samples):
    assert torch.equal(make_samples(views, 24, seed=0).evidence, samples.evidence)
    assert not torch.equal(make_samples(views, 24, seed=1).moving, samples.moving)


def test_walks_in_which_nothing_moves_are_refused(lively, tmp_path):
    cfg = DataConfig(first_seed=4, num_scenes=4, num_frames=6, height=48, width=64)
    still = Walks(lively.folder, cfg)
    still.moving = still.moving * False
    walks = encode_walks(tiny.modules()[0], lively)
    with pytest.raises(ValueError, match="nothing moves"):
        gather_views(still, walks, walks.depth)


def test_intersection_over_union_of_known_masks():
    moving = torch.zeros(1, 4, 4, dtype=torch.bool)
    moving[0, :2] = True
    said = torch.full((1, 4, 4), -1.0)
    assert iou(said, moving) == 0.0
    said[0, 1:3] = 1.0
    assert iou(said, moving) == pytest.approx(4 / 12)
    assert iou(said, torch.zeros_like(moving)) == 0.0
    assert iou(-torch.ones(1, 4, 4), torch.zeros_like(moving)) == 1.0


def test_the_truth_costs_least(samples):
    class Saying(torch.nn.Module):
        def __init__(self, logits: torch.Tensor) -> None:
            super().__init__()
            self.logits = logits

        def forward(self, evidence: torch.Tensor) -> torch.Tensor:
            return self.logits

    target = samples.moving[:4].float()
    batch = (samples.evidence[:4].float(), target)
    right, wrong, unsure = (8 * (2 * target - 1), -8 * (2 * target - 1), 0 * target)
    losses = [
        float(motion_loss(Saying(logits), batch, torch.Generator())[0])
        for logits in (right, unsure, wrong)
    ]
    assert losses[0] < 0.1 < losses[1] < losses[2]


def test_training_finds_what_moves(samples, tmp_path):
    cfg = RunConfig(
        minutes=1e9, num_steps=60, batch_size=8, learning_rate=3e-3, warmup_steps=4, log_every=20
    )
    head, progress = train_motion(cfg, samples, tmp_path, HEAD)
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert progress.step == 60 and head.cfg == HEAD
    assert log[-1]["loss"] < log[0]["loss"]
    assert 0 <= validation_iou(head, samples) <= 1
