"""Pictures shared out among threads: the same results, and torch's threads stay as they are."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from worker.depth.beside import side_by_side


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def told(number: int) -> tuple[int, int, str, bool, bool]:
    modes = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
    return number, torch.get_num_threads(), threading.current_thread().name, *modes


def test_each_is_worked_on_by_one_thread_in_order_and_mode(threads: int) -> None:
    with torch.inference_mode():
        found = side_by_side(told, range(20))
    assert [one[0] for one in found] == list(range(20))
    assert {one[1] for one in found} == {1}
    assert all(one[3] and not one[4] for one in found)
    own = threading.current_thread().name
    assert {one[2] == own for one in found} == {threads == 1}
    assert torch.get_num_threads() == threads


def test_threads_that_begin_later_have_as_many_as_before(threads: int) -> None:
    side_by_side(told, range(3))
    found: list[int] = []
    other = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert found == [threads]


def test_a_gpu_gets_its_work_in_turn(threads: int) -> None:
    found = side_by_side(told, range(3), torch.device("cuda"))
    assert {one[2] for one in found} == {threading.current_thread().name}


def test_an_error_is_told(threads: int) -> None:
    with pytest.raises(ZeroDivisionError):
        side_by_side(lambda number: 1 // number, [1, 2, 0])
    assert len(side_by_side(told, range(3))) == 3
