"""Small tensors gain nothing from threads, and one thread leaves the machine to others. For the
whole session, so that what fixtures computed is computed again bit for bit.
"""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
