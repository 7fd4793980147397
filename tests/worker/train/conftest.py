"""A set of two small walks, rendered once, as the stages see it."""

import pytest
import tiny
import torch
from torch import Tensor

from worker.train.data import DataConfig, Walks
from worker.train.footage import Footage
from worker.train.latents import LatentWalks, encode_walks


@pytest.fixture(scope="session")
def walks(tmp_path_factory: pytest.TempPathFactory) -> Walks:
    cfg = DataConfig(first_seed=21, num_scenes=2, num_frames=10, height=48, width=64)
    return Walks(tmp_path_factory.mktemp("walks"), cfg)


@pytest.fixture(scope="session")
def latent_walks(walks: Walks) -> LatentWalks:
    return encode_walks(tiny.modules()[0], walks)


@pytest.fixture(scope="session")
def footage(walks: Walks, latent_walks: LatentWalks) -> Footage:
    """With a depth head that is always right."""
    return Footage(walks, latent_walks, latent_walks.depth)


@pytest.fixture(scope="session")
def features() -> list[Tensor]:
    """What might be seen of the walks' pictures."""
    generator = torch.Generator().manual_seed(5)
    shapes = [(20, 3, 4, 4), (20, 5, 2, 2)]
    return [torch.randn(shape, generator=generator).bfloat16() for shape in shapes]
