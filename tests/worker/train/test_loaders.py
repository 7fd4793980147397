"""Processes that inherit nothing, as on macOS, render walks and make batches all the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor, multiprocessing
from torch.utils.data import DataLoader, Dataset

from worker.train import codec, denoiser, depth, motion, mover, polish
from worker.train.data import DataConfig, Walks
from worker.train.depth_views import views_of
from worker.train.footage import Footage
from worker.train.loop import same, step_generator
from worker.train.pictures import Pictures

Make = Callable[[torch.Generator], Any]


@pytest.fixture(autouse=True)
def spawn() -> Iterator[None]:
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


@dataclasses.dataclass
class Stages(Dataset[Any]):
    """A batch of each stage, by number."""

    makes: list[Make]

    def __getitem__(self, stage: int) -> Any:
        return self.makes[stage](step_generator(3, 0))


def tensors(batch: Any) -> Iterator[Tensor]:
    """All that a batch holds."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, tuple | list):
        for part in batch:
            yield from tensors(part)
    elif dataclasses.is_dataclass(batch):
        for field in dataclasses.fields(batch):
            yield from tensors(getattr(batch, field.name))


def test_every_stage_makes_the_same_batches_there(
    footage: Footage, features: list[Tensor], tmp_path: Path
):
    np.save(tmp_path / "crops.npy", np.random.default_rng(0).integers(0, 256, (2, 3, 48, 64), "u1"))
    coder, walks = tiny.modules()[0], footage.walks
    makes: list[Make] = [
        codec.batches(walks, 2, Pictures(tmp_path / "crops.npy")),
        depth.batches(views_of(footage.latents, features, 0), 4),
        motion.batches([motion.as_seen(walks)], 2),
        mover.batches(footage, 2),
        denoiser.batches(coder, footage, 2),
        polish.batches(coder, footage, 2, rollout_share=0.0),
        polish.batches(coder, footage, 2, rollout_share=1.0),
    ]
    loader = DataLoader(Stages(makes), None, sampler=range(7), num_workers=1, collate_fn=same)
    for here, there in zip(makes, loader, strict=True):
        pairs = zip(tensors(here(step_generator(3, 0))), tensors(there), strict=True)
        assert all(torch.equal(*pair) for pair in pairs), here


def test_walks_are_rendered_there(tmp_path: Path):
    cfg = DataConfig(first_seed=3, num_scenes=5, num_frames=2, height=32, width=48)
    there, here = Walks(tmp_path / "there", cfg, num_workers=1), Walks(tmp_path / "here", cfg)
    for name in ("rgb", "depth", "moving", "poses", "intrinsics"):
        assert np.array_equal(getattr(there, name), getattr(here, name)), name
    assert there.rgb.any()
