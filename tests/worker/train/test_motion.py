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
    iou,
    make_samples,
    motion_loss,
    moving_cells,
    train_motion,
    validation_iou,
)

HEAD = MotionConfig(tiny.CHANNELS, (8, 16), 1)
GRID = (6, 8)


@pytest.fixture(scope="module")
def lively(tmp_path_factory: pytest.TempPathFactory) -> Walks:
    cfg = DataConfig(first_seed=4, num_scenes=4, num_frames=6, height=48, width=64)
    return Walks(tmp_path_factory.mktemp("lively"), cfg)


@pytest.fixture(scope="module")
def samples(lively: Walks) -> Samples:
    walks = encode_walks(tiny.modules()[0], lively)
    return make_samples(walks, walks.depth, moving_cells(lively, GRID), 24, seed=0)


def test_cells_move_from_a_quarter_of_their_pixels_on(lively):
    cells = moving_cells(lively, GRID)
    assert cells.shape == (4, 6, *GRID) and cells.any() and not cells.all()
    pixels = torch.from_numpy(lively.moving[:]).float().view(4, 6, 6, 8, 8, 8).mean((3, 5))
    assert torch.equal(cells, pixels >= MOVING_SHARE)


def test_samples_are_evidence_with_labels(samples):
    assert samples.evidence.shape == (24, 3 * tiny.CHANNELS + NUM_SCALARS, *GRID)
    assert samples.moving.shape == (24, *GRID) and samples.moving.dtype == torch.bool
    assert samples.evidence.isfinite().all() and samples.moving.any()
    seen = samples.evidence[:, 3 * tiny.CHANNELS].float().mean((1, 2))
    assert (seen > 0.3).float().mean() > 0.5  # most views were preceded by one nearby


def test_samples_depend_on_the_seed_alone(lively, samples):
    walks = encode_walks(tiny.modules()[0], lively)
    cells = moving_cells(lively, GRID)
    again = make_samples(walks, walks.depth, cells, 24, seed=0)
    assert torch.equal(again.evidence, samples.evidence)
    other = make_samples(walks, walks.depth, cells, 24, seed=1)
    assert not torch.equal(other.moving, samples.moving)


def test_walks_in_which_nothing_moves_are_refused(lively):
    walks = encode_walks(tiny.modules()[0], lively)
    still = torch.zeros(4, 6, *GRID, dtype=torch.bool)
    with pytest.raises(ValueError, match="nothing moves"):
        make_samples(walks, walks.depth, still, 1, seed=0)


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
